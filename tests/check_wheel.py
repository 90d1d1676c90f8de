"""Builds the wheel, installs it into a fresh environment, imports every module and runs the command."""

import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
IMPORT_ALL = """
import importlib, pkgutil, homing.router, homing.protos, homing.sim
for package in (homing.router, homing.protos, homing.sim):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if not module.name.startswith("homing.router.cli.demo."):
            importlib.import_module(module.name)
import sys
assert "torch" not in sys.modules, "a router must not need torch"
print("all modules of the router import without torch")
"""


def main() -> None:
    """Raise CalledProcessError at the first step that fails."""
    with tempfile.TemporaryDirectory() as folder:
        run = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, str(ROOT)]
        subprocess.run(run, check=True)
        (wheel,) = Path(folder).glob("homing-*.whl")
        venv.create(Path(folder) / "venv", with_pip=True)
        python = Path(folder) / "venv/bin/python"
        subprocess.run([python, "-m", "pip", "install", "--quiet", wheel], check=True, cwd=folder)
        subprocess.run([python, "-c", IMPORT_ALL], check=True, cwd=folder)
        subprocess.run([python.parent / "homing", "--version"], check=True, cwd=folder)
        serve = [python.parent / "homing", "serve", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"]
        with subprocess.Popen(serve, stderr=subprocess.PIPE, text=True) as router:
            assert router.stderr is not None
            line = router.stderr.readline()
            router.terminate()
            assert "listens on" in line, line + router.stderr.read()
            assert router.wait(timeout=30) == 0
        packages = sorted(path.name for path in python.parent.parent.glob("lib/python*/site-packages/homing/*"))
        assert packages == ["protos", "router", "sim", "workers"], packages


if __name__ == "__main__":
    main()
