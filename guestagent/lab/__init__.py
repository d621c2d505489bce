"""Hosts in network namespaces with real traffic between them: for `guestagent demo`, the tests and the benchmarks."""
