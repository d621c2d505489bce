import pytest, time, json
from tests.lab.rig import *
from guestagent.lab.packets import udp_send, udp_send_segmented
from guestagent.lab.hosts import Host
@pytest.fixture
def rig(tmp_path): return Rig(tmp_path)

@pytest.mark.parametrize("engine", ["ring", "portable"])
def test_tcp(rig, pair, engine):
    vm, peer = pair
    collector = rig.collect(peer); agent = rig.agent(vm, "--engine", engine)
    m0 = agent.memory_bytes(); c0 = agent.cpu_seconds()
    vm.call(udp_send, "10.9.0.1", 9000, 20000, 10_000, 300)
    peer.call(udp_send, "10.9.0.2", 9000, 20000, 10_000, 300, first_index=20000)
    st = agent.status(); c1 = agent.cpu_seconds()
    ledger, report = agent.stop(), collector.stop()
    print(engine, "mem MB", m0/1e6, agent and '', st["engine"], st["engine_reason"], {k: ledger[k] for k in ("captured","delivered","dropped_by_ring","in_flight")}, "cpu for 40k", c1-c0)
    print(agent.log_text())
    assert_ledger_closes(ledger, report)
    assert sorted(udp_indexes(rig.frames(), 9000, 300)) == list(range(40000))

@pytest.mark.parametrize("engine", ["ring", "portable"])
def test_dir(rig, pair, engine):
    vm, peer = pair
    agent = rig.agent(vm, "--engine", engine, to=f"dir:{rig.captures}")
    vm.call(udp_send, "10.9.0.1", 9000, 20000, 10_000, 300)
    ledger = agent.stop()
    print(engine, ledger)
    assert ledger["in_flight"] == 0 and ledger["captured"] == ledger["delivered"]
    assert sorted(udp_indexes(rig.frames(), 9000, 300)) == list(range(20000))

@pytest.mark.parametrize("engine", ["ring", "portable"])
def test_outage(rig, pair, engine):
    vm, peer = pair
    collector = rig.collect(peer); agent = rig.agent(vm, "--engine", engine)
    time.sleep(.5)
    collector.stop()
    vm.call(udp_send, "10.9.0.1", 9000, 30000, 10_000, 300)
    c=agent.cpu_seconds(); time.sleep(1); print("idle cpu in outage", agent.cpu_seconds()-c)
    collector = rig.collect(peer)
    time.sleep(1.5)
    ledger, report = agent.stop(), collector.stop()
    print(engine, {k: ledger[k] for k in ("captured","delivered","dropped_by_ring","in_flight")})
    assert sorted(udp_indexes(rig.frames(), 9000, 300)) == list(range(30000))

def test_gone(rig, pair):
    vm, peer = pair
    agent = rig.agent(vm, "--engine", "portable", "--ring", "4MB", connected=False)
    wait_for(lambda: agent.status().get("role"), "run")
    vm.call(udp_send, "10.9.0.1", 9000, 30000, 10_000, 1300)
    ledger = agent.stop()
    print({k: ledger[k] for k in ("captured","delivered","dropped_by_ring","in_flight","lost_on_link")})
    assert ledger["in_flight"] == 0
