"""Builds the wheel, installs it into a fresh environment, imports every module and runs the command."""

import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
IMPORT_ALL = """
import importlib, pkgutil, homing.router, homing.protos, homing.sim
SIM = {"jinja2", "markupsafe", "matplotlib", "numpy", "pyarrow"}
HTTP = {"httptools", "jinja2", "markupsafe", "tokenizers", "uvloop", "zmq"}
EXTRAS = {
    "homing.sim": SIM,
    "homing.router.envoy": {"envoy"},
    "homing.router.kv_events": HTTP,
    "homing.router.service.backends": HTTP,
    "homing.router.service.door": HTTP,
    "homing.router.service.front": HTTP,
    "homing.router.service.picker": HTTP,
    "homing.router.tokens": HTTP,
}
for package in (homing.router, homing.protos, homing.sim):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + ".", onerror=lambda name: None):
        if module.name.startswith("homing.router.cli.demo."):
            continue
        try:
            importlib.import_module(module.name)
        except ModuleNotFoundError as error:
            lacks = [names for part, names in EXTRAS.items() if (module.name + ".").startswith(part + ".")]
            assert lacks and error.name in lacks[0], f"{module.name} needs {error.name}"
import sys
assert "torch" not in sys.modules, "a router must not need torch"
print("all modules of the router import without torch, and no part lacks anything but its extra")
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
        simulate = [python.parent / "homing", "sim"]
        for name in ("smoke", "conversation"):
            subprocess.run([*simulate, "run", name, "--no-report"], check=True, cwd=folder)
        refused = subprocess.run(
            [*simulate, "compare", "smoke"], cwd=folder, stderr=subprocess.PIPE, text=True, check=False
        )
        assert refused.returncode == 2 and "pip install 'homing[sim]'" in refused.stderr, refused.stderr
        fronting = [python.parent / "homing", "serve", "--backend", "http://127.0.0.1:1"]
        refused = subprocess.run(fronting, cwd=folder, stderr=subprocess.PIPE, text=True, check=False, timeout=60)
        assert refused.returncode == 2 and "pip install 'homing[http]'" in refused.stderr, refused.stderr
        serve = [python.parent / "homing", "serve", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"]
        with subprocess.Popen(serve, stderr=subprocess.PIPE, text=True) as router:
            assert router.stderr is not None
            line = router.stderr.readline()
            router.terminate()
            assert "listens on" in line, line + router.stderr.read()
            assert router.wait(timeout=30) == 0
        packages = sorted(path.name for path in python.parent.parent.glob("lib/python*/site-packages/homing/*"))
        assert packages == ["loadtest", "protos", "router", "sim", "workers"], packages


if __name__ == "__main__":
    main()
