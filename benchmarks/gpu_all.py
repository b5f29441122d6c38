"""Run what benchmarks/gpu_todo.md asks of a GPU, the most telling first, and keep every result.

Steps follow one another.  One that fails or exceeds its time is noted with the end of what it
printed, and the next one begins.  For a machine that is lent in slices, --part runs as many of them
as fit --minutes; all parts may share one folder.

It holds figures and logs by name, and steps.json: what was run, for how long, how it ended.
"""

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from _common import ROOT, environment, matching

EXAMPLES = """\
examples:
  python benchmarks/gpu_all.py --plan                        what would run, in which parts
  python benchmarks/gpu_all.py --out gpu                     everything, one after the other
  python benchmarks/gpu_all.py --out gpu --part 1            the first ten minutes' worth
  python benchmarks/gpu_all.py --out gpu --only 'step-*'     some steps
  python benchmarks/gpu_all.py --out /tmp/gpu --tiny         on a CPU, to see that it runs
"""


@dataclass(frozen=True)
class Step:
    """One command.

    Attributes:
        name: Of its files.
        command: Arguments of Python, with {out} for the folder and {name} for the name.
        gpu: Further ones on a GPU.
        minutes: After which it is stopped.
        tiny: Further ones in place of ``gpu`` with --tiny.
        needs: File or folder without which it is left out.
    """

    name: str
    command: str
    gpu: str
    minutes: float
    tiny: str = "--tiny --seconds 0"
    needs: str | None = None

    def arguments(self, out: Path, tiny: bool) -> list[str]:
        """Command line."""
        text = f"{self.command} {self.tiny if tiny else self.gpu}"
        return [part.format(out=out, name=self.name) for part in shlex.split(text)]


TRAIN = "benchmarks/train_step.py --out {out}/{name}"
ON_GPU = "--device cuda --amp bf16 --channels-last"


def training_step(network: str, minutes: float) -> Step:
    """Training steps of one network, replayed as graphs."""
    options = "--cuda-graph --skip literal --variant gram16:gram=input triton:backend=triton"
    return Step(
        f"step-{network}", TRAIN, f"{ON_GPU} {options} --seconds 15 --only {network}", minutes
    )


STEPS = (
    Step(
        "tests",
        "-m pytest -v --junitxml={out}/{name}.xml",
        "-m gpu",
        minutes=5,
        tiny="tests/test_products.py -k onednn",
    ),
    Step("kernels", "benchmarks/kernels.py --out {out}/{name}", "--seconds 0.5", minutes=3),
    training_step("resnet18-cifar", minutes=2),
    training_step("deeplabv3-resnet50", minutes=4),
    Step(
        "layers",
        "benchmarks/layers.py --out {out}/{name}",
        "--device cuda --amp bf16 --batch-times 8 --seconds 1",
        minutes=4,
    ),
    Step(
        "inference",
        "benchmarks/inference.py --no-onnx --out {out}/{name}",
        "--device cuda --channels-last --seconds 5",
        minutes=2.5,
    ),
    training_step("resnet50-imagenet", minutes=3),
    training_step("unet-resnet18", minutes=2),
    Step("step-literal", TRAIN, f"{ON_GPU} --seconds 10 --only resnet18-cifar", minutes=2),
    Step(
        "step-compiled",
        TRAIN,
        f"{ON_GPU} --compile --skip literal released --seconds 8 --only resnet18-cifar",
        minutes=4.5,
    ),
    Step(
        "loading",
        "benchmarks/loading.py --out {out}/{name}",
        "--device cuda --amp bf16 --seconds 5",
        minutes=2,
    ),
    Step(
        "options",
        "benchmarks/pareto.py --runs {out}/runs --out {out}/{name}",
        "--device cuda --epochs 3 --seeds 0 1 2 --seconds 20 "
        "--only batchnorm released default 'block 16' 'fitted*' 'coarse*' 'every *' constant*",
        minutes=9.5,
        tiny="--tiny --seconds 0 --epochs 1 --width 4 --only default",
        needs="data/cifar-10-batches-py/data_batch_5",
    ),
)


def parts(steps: Sequence[Step], minutes: float) -> list[list[Step]]:
    """The steps in their order, in runs whose limits add up to ``minutes`` or are a single one."""
    runs: list[list[Step]] = []
    for step in steps:
        if not runs or sum(s.minutes for s in runs[-1]) + step.minutes > minutes:
            runs.append([])
        runs[-1].append(step)
    return runs


def run(step: Step, out: Path, tiny: bool, minutes: float) -> dict[str, Any]:
    """Run a step, its output in a log."""
    command, start = step.arguments(out, tiny), time.monotonic()
    record = {"name": step.name, "command": shlex.join(["python", *command])}
    if step.needs and not tiny and not (ROOT / step.needs).exists():
        return record | {"ended": f"left out: there is no {step.needs}"}
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    log = out / f"{step.name}.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, *command],
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env=environ,
            start_new_session=True,  # so that its own processes can be stopped with it
        )
        try:
            code = process.wait(60 * minutes)
            ended = "ok" if code == 0 else f"failed with {code}"
        except subprocess.TimeoutExpired:
            ended = f"stopped after {minutes:g} minutes"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    end = [] if ended == "ok" else log.read_text(errors="replace").splitlines()[-15:]
    return record | {"ended": ended, "seconds": round(time.monotonic() - start, 1), "end": end}


def note(out: Path, record: dict[str, Any]) -> None:
    """Put what a step did into steps.json, in place of an earlier run of it."""
    path = out / "steps.json"
    notes = json.loads(path.read_text()) if path.exists() else {}
    notes[record["name"]] = record | {"environment": environment()}
    path.write_text(json.dumps(notes, indent=1) + "\n")


def plan(runs: Sequence[Sequence[Step]], out: Path, tiny: bool) -> str:
    """What would run."""
    lines = []
    for number, steps in enumerate(runs, 1):
        lines.append(f"part {number}: {sum(step.minutes for step in steps):g} minutes at most")
        for step in steps:
            command = shlex.join(["python", *step.arguments(out, tiny)])
            needs = f"  (needs {step.needs})" if step.needs else ""
            lines.append(f"  {step.minutes:g} min  {step.name}: {command}{needs}")
    return "\n".join(lines)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, default=os.environ.get("OUT"), help="folder; default: $OUT"
    )
    parser.add_argument("--plan", action="store_true", help="print what would run, and stop")
    parser.add_argument("--part", type=int, help="run this part only, from 1; default: all")
    parser.add_argument(
        "--minutes", type=float, default=9.5, help="that a part may take (9.5); steps' own limits"
    )
    parser.add_argument("--only", nargs="+", metavar="GLOB", help="steps of that name")
    parser.add_argument("--tiny", action="store_true", help="tiny inputs, on the CPU")
    options = parser.parse_args(arguments)
    if options.out is None and not options.plan:
        parser.error("nowhere to put the results; give --out FOLDER or set OUT")
    if not (options.plan or options.tiny or torch.cuda.is_available()):
        parser.error("no GPU is here; --tiny runs small inputs on the CPU, --plan runs nothing")
    return options


def main() -> None:
    """Run what the command line asks for; fail if a step did."""
    options = parse()
    names = matching(options.only, [step.name for step in STEPS], "step")
    runs = parts([step for step in STEPS if step.name in names], options.minutes)
    if options.part is not None:
        if not 1 <= options.part <= len(runs):
            raise SystemExit(f"--part {options.part}: there are 1 to {len(runs)}, see --plan")
        runs = [runs[options.part - 1]]
    out = Path(options.out or "OUT").resolve()
    if options.plan:
        print(plan(runs, out, options.tiny))
        return
    out.mkdir(parents=True, exist_ok=True)
    failed = False
    for step in (step for steps in runs for step in steps):
        print(f"{step.name} ...", flush=True)
        record = run(step, out, options.tiny, step.minutes)
        note(out, record)
        failed |= record["ended"] != "ok"
        print("\n".join([f"{step.name}: {record['ended']}", *record.get("end", [])]), flush=True)
    print(f"results are in {out}")
    raise SystemExit(failed)


if __name__ == "__main__":
    main()
