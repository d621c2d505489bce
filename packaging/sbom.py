"""What travels in a package, as CycloneDX (https://cyclonedx.org): name, version, licence and origin of each part."""

import json
import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

from origin import ROOT, epoch, version


def bill_of_materials(library: Path, package: str) -> str:
    """JSON, the same for the same libraries: what cyclonedx-py finds in an environment that holds them alone."""
    with tempfile.TemporaryDirectory() as scratch:
        venv.create(scratch, with_pip=False, symlinks=True)
        (site,) = Path(scratch).glob("lib/python*/site-packages")
        (site / "library.pth").write_text(f"{library}\n", encoding="utf-8")
        command = [str(Path(sys.executable).with_name("cyclonedx-py")), "environment", "--output-reproducible"]
        command += ["--pyproject", str(ROOT / "pyproject.toml"), scratch]
        environment = {**os.environ, "SOURCE_DATE_EPOCH": str(epoch())}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    bill = json.loads(done.stdout)
    # The version is dynamic in pyproject.toml, and this file is about one package.
    bill["metadata"]["component"] |= {"name": package, "version": version()}
    return json.dumps(bill, indent=1, sort_keys=True) + "\n"
