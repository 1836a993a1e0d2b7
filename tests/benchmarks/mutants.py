"""Break the losses, the objectives and the trainer in one place at a time, and see which test notices.

python tests/benchmarks/mutants.py [WORD ...]

With words, only mutants whose name holds one of them. Exits with 1 if a mutant survives that is not listed as
harmless, or if the text that it replaces is not in its file exactly once. The tests of each mutant run in a
copy of the repository, in a fork of a process that has imported torch.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
TESTS = (
    "tests/trainer/test_golden.py",
    "tests/test_objective.py",
    "tests/losses",
    "tests/test_scores.py",
    "tests/trainer/test_loop.py",
    "tests/terms",
    "tests/trainer/test_precision.py",
    "tests/trainer/test_device.py",
)
SECONDS = 240  # that the tests of a mutant may take


class Mutant(NamedTuple):
    name: str
    file: str
    old: str
    new: str
    harmless: str = ""  # why it may survive


LOGITS, REGIONS, NUMERICS = "icd/losses/logits.py", "icd/losses/regions.py", "icd/losses/numerics.py"
BASE, TERMS, METHODS = "icd/terms/base.py", "icd/terms/logits.py", "icd/objective.py"
RECIPE, STUDENT, LOOP = "icd/trainer/recipe.py", "icd/trainer/student.py", "icd/trainer/loop.py"
STATE, CACHE, SCORES = "icd/trainer/state.py", "icd/datasets/cache.py", "icd/scores.py"

MUTANTS = [
    # the losses
    Mutant("KD forgets T^2", LOGITS, "temperature**2 * apart", "apart"),
    Mutant(
        "KD compares the student's with the teacher's",
        LOGITS,
        "kl_divergence(log_softmax(teacher, temperature), log_softmax(student, temperature))",
        "kl_divergence(log_softmax(student, temperature), log_softmax(teacher, temperature))",
    ),
    Mutant("KL weighs by q", NUMERICS, "log_p.exp() * (log_p - log_q)", "log_q.exp() * (log_p - log_q)"),
    Mutant("softmax over the batch", NUMERICS, ".log_softmax(-1)", ".log_softmax(0)"),
    Mutant("temperature ignored", NUMERICS, "F.hardtanh(logits / temperature,", "F.hardtanh(logits,"),
    Mutant(
        "losses compute in half precision",
        NUMERICS,
        "(t.dtype for t in tensors), torch.float32)",
        "(t.dtype for t in tensors))",
    ),
    Mutant("DKD's alpha ignored", LOGITS, "alpha * tckd", "tckd"),
    Mutant("DKD's beta ignored", LOGITS, "beta * nckd", "nckd"),
    Mutant("DKD forgets T^2", LOGITS, "temperature**2 * (alpha", "(alpha"),
    Mutant(
        "DKD's target part has no temperature",
        LOGITS,
        "softened = soften(scores, temperature)",
        "softened = soften(scores)",
    ),
    Mutant(
        "DKD's others hold the target",
        LOGITS,
        "rest = mask_out(softened, label).logsumexp(1)",
        "rest = softened.logsumexp(1)",
    ),
    Mutant("NKD masks nothing", LOGITS, "if exclude_target else None", "if not exclude_target else None"),
    Mutant("NKD's gamma ignored", LOGITS, "- gamma * temperature**2 * spread", "- temperature**2 * spread"),
    Mutant("NKD forgets T^2", LOGITS, "- gamma * temperature**2 * spread", "- gamma * spread"),
    Mutant(
        "NKD's target part has the temperature",
        LOGITS,
        "log_softmax(teacher).gather",
        "log_softmax(teacher, temperature).gather",
    ),
    Mutant("sum over the batch", LOGITS, "losses.mean()", "losses.sum()"),
    Mutant(
        "consistent regions weigh double",
        REGIONS,
        "region_right == image_right",
        "region_right != image_right",
    ),
    Mutant("complementary weight ignored", REGIONS, "complementary * loss)", "loss)"),
    Mutant("complementary weight 3", REGIONS, "complementary: float = 2.0", "complementary: float = 3.0"),
    Mutant(
        "regions are summed", REGIONS, "complementary * loss).mean()", "complementary * loss).sum(1).mean()"
    ),
    Mutant(
        "the image's own logits ignored",
        REGIONS,
        "if teacher_logits is None else teacher_logits",
        "if True else teacher_logits",
    ),
    Mutant("iCD's temperature 1", REGIONS, "temperature: float = 2.0", "temperature: float = 1.0"),
    Mutant(
        "iCD's rows are averaged",
        REGIONS,
        'reduction: Literal["sum", "mean"] = "sum"',
        'reduction: Literal["sum", "mean"] = "mean"',
    ),
    Mutant("iCD's scales weigh alike", REGIONS, "raw = [1 + math.log2(m)", "raw = [1.0"),
    Mutant("iCD's weights do not sum to 1", REGIONS, "w / sum(raw)", "w"),
    Mutant(
        "iCD compares across scales",
        REGIONS,
        "others = scale != scale[:, None]",
        "others = (scale != scale[:, None]) & False",
    ),
    Mutant(
        "iCD compares the student's with the teacher's",
        REGIONS,
        "log_softmax(teacher_gram, temperature, others), log_softmax(student_gram, temperature, others)",
        "log_softmax(student_gram, temperature, others), log_softmax(teacher_gram, temperature, others)",
    ),
    Mutant(
        "a Gram matrix is not normalised",
        NUMERICS,
        "return products * (inverse[:, :, None] * inverse[:, None, :])",
        "return products",
    ),
    Mutant(
        "a Gram matrix is centred",
        REGIONS,
        "cosines(local, centre, shortest)",
        "cosines(local, True, shortest)",
    ),
    Mutant("centring ignored", NUMERICS, "if centre:", "if False:"),
    Mutant("the head has no bias", SCORES, "None if bias is None else bias.to(logits.dtype)", "None"),
    # the objectives
    Mutant("weights of terms ignored", BASE, "t.weight_at(epoch) * t(student", "1.0 * t(student"),
    Mutant("warm-up ignored", BASE, "if self.warmup_epochs else 1.0", "if False else 1.0"),
    Mutant(
        "warm-up counts from 0",
        BASE,
        "min(epoch / self.warmup_epochs",
        "min((epoch - 1) / self.warmup_epochs",
    ),
    Mutant(
        "warm-up never ends", BASE, "min(epoch / self.warmup_epochs, 1.0)", "(epoch / self.warmup_epochs)"
    ),
    Mutant("cross-entropy times zero", TERMS, "return F.cross_entropy(", "return 0 * F.cross_entropy("),
    Mutant(
        "logit terms times zero", TERMS, "return loss(*(map(standardise", "return 0 * loss(*(map(standardise"
    ),
    Mutant(
        "region terms times zero", TERMS, "return scale_decoupled_loss(", "return 0 * scale_decoupled_loss("
    ),
    Mutant("clustering times zero", TERMS, "return icd_loss(", "return 0 * icd_loss("),
    Mutant("a gradient to the teacher's logits", TERMS, "teacher.logits.detach()", "teacher.logits"),
    Mutant(
        "a gradient to the teacher's regions", TERMS, "with torch.no_grad():", "with torch.enable_grad():"
    ),
    Mutant(
        "a region term does not know the image",
        TERMS,
        "teacher_logits=whole, **arguments",
        "**arguments",
    ),
    Mutant(
        "arguments of a logit term ignored",
        TERMS,
        "batch.target, **arguments)\n\n    _check_arguments(arguments, loss)",
        "batch.target)\n\n    _check_arguments(arguments, loss)",
    ),
    *(
        Mutant(f"METHODS: {old} -> {new}", METHODS, old, new)
        for old, new in (
            ("0.1 * cross_entropy() + 0.9 * whole_image", "0.2 * cross_entropy() + 0.9 * whole_image"),
            ("0.9 * whole_image(kd_loss, temperature=4)", "0.8 * whole_image(kd_loss, temperature=4)"),
            ("0.9 * whole_image(kd_loss, temperature=4)", "0.9 * whole_image(kd_loss, temperature=3)"),
            ("whole_image(dkd_loss, beta=8", "whole_image(dkd_loss, beta=2"),
            ("whole_image(dkd_loss, beta=8, temperature=4)", "whole_image(dkd_loss, beta=8, temperature=3)"),
            (
                "whole_image(dkd_loss, beta=8, temperature=4).warmed_up(20)",
                "whole_image(dkd_loss, beta=8, temperature=4).warmed_up(2)",
            ),
            ("gamma=1.5", "gamma=2"),
            ("gamma=1.5, temperature=1", "gamma=1.5, temperature=4"),
            ("temperature=1).warmed_up(20)", "temperature=1)"),
            ("0.1 * cross_entropy() + 0.9 * scale_decoupled", "cross_entropy() + 0.9 * scale_decoupled"),
            ("0.9 * scale_decoupled(kd_loss, temperature=4)", "scale_decoupled(kd_loss, temperature=4)"),
            ("scale_decoupled(kd_loss, temperature=4)", "scale_decoupled(kd_loss, temperature=2)"),
            ("scale_decoupled(dkd_loss, beta=2", "scale_decoupled(dkd_loss, beta=8"),
            ("scale_decoupled(nkd_loss, gamma=2", "scale_decoupled(nkd_loss, gamma=1.5"),
            ("+ 2.0 * clustering()", "+ clustering()"),
            ("100 * fitnet()", "10 * fitnet()"),
            ("0.8 * crd()", "crd()"),
            ("400 * semckd()", "40 * semckd()"),
            ("whole_image(kd_loss, temperature=4) + 400", "0.9 * whole_image(kd_loss, temperature=4) + 400"),
            ("3000 * sp()", "300 * sp()"),
            ("+ rkd()", "+ 0.5 * rkd()"),
            ("1000 * at()", "100 * at()"),
        )
    ),
    # the trainer
    Mutant("epochs ignored", LOOP, "while epoch < recipe.epochs:", "while epoch < 1:"),
    Mutant("learning rate fixed", RECIPE, "return self.learning_rate * 0.1", "return 0.05 * 0.1"),
    Mutant(
        "milestones ignored",
        RECIPE,
        "for milestone in self.milestones)",
        "for milestone in (0.625, 0.75, 0.875))",
    ),
    Mutant(
        "a step down at the wrong end of a milestone", RECIPE, "progress >= milestone", "progress > milestone"
    ),
    Mutant("the rate falls by half", RECIPE, "0.1 ** sum(", "0.5 ** sum("),
    Mutant("the schedule is always multistep", RECIPE, 'if self.schedule == "multistep":', "if True:"),
    Mutant("one-cycle without its rise", RECIPE, "if progress < 0.2:", "if progress < 0:"),
    Mutant(
        "the rate follows epochs only",
        LOOP,
        "(epoch + step / steps) / recipe.epochs",
        "epoch / recipe.epochs",
    ),
    Mutant("the rate is not set", STUDENT, 'group["lr"] = rate', "pass"),
    Mutant("momentum fixed", STUDENT, "            recipe.momentum,\n", "            0.9,\n"),
    Mutant("weight decay 0", STUDENT, "weight_decay=recipe.weight_decay", "weight_decay=0"),
    Mutant("Nesterov off", STUDENT, "nesterov=recipe.nesterov", "nesterov=False"),
    Mutant(
        "clipping deleted",
        STUDENT,
        "nn.utils.clip_grad_norm_(self._weights(), self.recipe.max_grad_norm)",
        "pass",
    ),
    Mutant("clipping at 40", STUDENT, "self.recipe.max_grad_norm)", "40)"),
    Mutant("clipping before unscaling", STUDENT, "self.backend.unscale_gradients(self.optimizer)", "pass"),
    Mutant("gradients are kept", STUDENT, "self.optimizer.zero_grad()", "pass"),
    Mutant(
        "accumulated gradients are summed",
        STUDENT,
        "backward(loss / self.recipe.accumulation_steps)",
        "backward(loss)",
    ),
    Mutant(
        "accumulation ignored",
        STUDENT,
        "split(len(batch.images), self.recipe.accumulation_steps)",
        "split(len(batch.images), 1)",
    ),
    Mutant(
        "the seed ignored",
        LOOP,
        "data.training_batch(recipe.seed, epoch, step",
        "data.training_batch(0, epoch, step",
    ),
    Mutant(
        "every epoch the same",
        LOOP,
        "data.training_batch(recipe.seed, epoch, step",
        "data.training_batch(recipe.seed, 0, step",
    ),
    Mutant(
        "every step the same",
        LOOP,
        "data.training_batch(recipe.seed, epoch, step",
        "data.training_batch(recipe.seed, epoch, 0",
    ),
    Mutant(
        "terms see the wrong epoch", LOOP, "teacher_scores, epoch + 1, rate)", "teacher_scores, epoch, rate)"
    ),
    Mutant(
        "the last short batch is kept",
        CACHE,
        "max(len(self) // batch_size, 1)",
        "max(-(-len(self) // batch_size), 1)",
    ),
    Mutant("no crop", CACHE, "corner = chance.integers(0, room + 1", "corner = chance.integers(0, 1"),
    Mutant("no flip", CACHE, "chance.random(len(rows)) < 0.5", "chance.random(len(rows)) < 0"),
    Mutant("always flipped", CACHE, "chance.random(len(rows)) < 0.5", "chance.random(len(rows)) < 1"),
    Mutant(
        "one order for all epochs",
        CACHE,
        "np.random.default_rng([seed, epoch]).permutation",
        "np.random.default_rng([seed]).permutation",
    ),
    Mutant(
        "the batch's numbers are wrong",
        CACHE,
        "torch.from_numpy(crops[0])",
        "torch.from_numpy(crops[0]).flip(0)",
    ),
    Mutant(
        "the teacher in training mode",
        LOOP,
        "to_channels_last(teacher, device).eval()",
        "to_channels_last(teacher, device).train()",
    ),
    Mutant(
        "the student in evaluation mode",
        STUDENT,
        "self.network.train()\n        if recipe.sync_batch_norm",
        "self.network.eval()\n        if recipe.sync_batch_norm",
    ),
    Mutant(
        "a gradient through the teacher",
        LOOP,
        "with torch.no_grad(), accelerator.autocast():",
        "with accelerator.autocast():",
        harmless="costs time and memory: every term detaches the teacher's scores",
    ),
    Mutant("autocast off", STUDENT, "with self.backend.autocast():", "if True:"),
    Mutant("the trained student stays in training mode", LOOP, "student.network.eval()", "pass"),
    Mutant(
        "the step waits for the device", STUDENT, "self.pending.append(", "loss.item(); self.pending.append("
    ),
    Mutant("a NaN goes unseen", STUDENT, "if not math.isfinite(value):", "if False:"),
    Mutant(
        "terms' parameters are not trained",
        STUDENT,
        "yield from self.objective.parameters()",
        "yield from ()",
    ),
    # checkpoints
    Mutant(
        "the optimizer is not restored", STUDENT, 'self.optimizer.load_state_dict(state["optimizer"])', "pass"
    ),
    Mutant("the weights are not restored", STUDENT, 'self.network.load_state_dict(state["network"])', "pass"),
    Mutant(
        "the terms are not restored", STUDENT, 'self.objective.load_state_dict(state["objective"])', "pass"
    ),
    Mutant(
        "the epoch's sums are not restored",
        STUDENT,
        'self.history, self.sums, self.provenance = state["history"], state["sums"]',
        'self.history, self.sums, self.provenance = state["history"], self.sums',
    ),
    Mutant(
        "the scaler is not restored", STATE, 'accelerator.scaler.load_state_dict(saved["scaler"])', "pass"
    ),
    Mutant("torch's random state is not restored", STATE, 'torch.set_rng_state(saved["random"])', "pass"),
    Mutant(
        "the step within the epoch is not restored",
        STATE,
        'int(saved["epoch"]), int(saved["step"])',
        'int(saved["epoch"]), 0',
    ),
    Mutant(
        "another run in the folder is overwritten", LOOP, "check_same_run(folder", "(lambda *_: 0)(folder"
    ),
]


def test(tree: Path, output: Path) -> int:
    """Run the tests in this process; return pytest's exit code."""
    with output.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    signal.alarm(SECONDS)
    os.chdir(tree)
    sys.path.insert(0, str(tree))
    os.environ["PYTHONPATH"] = str(tree)
    import pytest

    options = ["-k", "not killed"]  # these take a minute, and depend on how busy the machine is
    tests = [test for test in TESTS if (tree / test).exists()]
    return int(
        pytest.main(
            ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-m", "not slow", *options, *tests]
        )
    )


def run(tree: Path) -> tuple[str, float]:
    """Run the tests in a copy of the repository; return the first failure ("" for none) and the seconds."""
    began, output = time.monotonic(), tree / "output.txt"
    child = os.fork()
    if child == 0:
        try:
            os._exit(test(tree, output))
        finally:  # never back into the parent's code
            traceback.print_exc()
            os._exit(3)
    _, status = os.waitpid(child, 0)
    taken = time.monotonic() - began
    if os.WIFSIGNALED(status):
        return f"(stopped by signal {os.WTERMSIG(status)})", taken
    code, text = os.waitstatus_to_exitcode(status), output.read_text(encoding="utf8", errors="replace")
    failed = re.search(r"^(?:FAILED|ERROR) (\S+)", text, re.MULTILINE)
    return ("" if code == 0 else failed[1] if failed else text[-300:]), taken


def main(words: list[str]) -> int:
    chosen = [m for m in MUTANTS if not words or any(word in m.name for word in words)]
    sys.dont_write_bytecode = True
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    import accelerate  # noqa: F401
    import torch  # noqa: F401
    import torchvision  # noqa: F401

    wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder)
        for part in ("icd", "tests", "data", "book"):
            shutil.copytree(
                ROOT / part, tree / part, ignore=shutil.ignore_patterns("__pycache__", "_*build*")
            )
        shutil.copy(ROOT / "pyproject.toml", tree)
        failed, taken = run(tree)
        print(f"{'no mutant':60} {failed or 'all pass'}  {taken:.0f} s", flush=True)
        if failed:
            return 1
        for name, file, old, new, harmless in chosen:
            path = tree / file
            text = path.read_text(encoding="utf8")
            if text.count(old) != 1:
                killed, taken = f"DOES NOT APPLY: {text.count(old)} x {old!r} in {file}", 0.0
            else:
                path.write_text(text.replace(old, new), encoding="utf8")
                killed, taken = run(tree)
                path.write_text(text, encoding="utf8")
            bad = killed.startswith("DOES NOT APPLY") or (not killed and not harmless)
            wrong += bad
            verdict = killed or (f"harmless: {harmless}" if harmless else "SURVIVES")
            print(f"{name:60} {verdict}  {taken:.0f} s", flush=True)
    print(f"{len(chosen)} mutants, {wrong} of them survive or do not apply")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
