"""What torch raises in the midst of training because of an option, as a message."""

import re
from collections.abc import Mapping
from typing import Any

from bevreshape.errors import Divergence, InputError
from bevreshape.training.rehearsal import compile_failure


def explain_failure(error: RuntimeError, trainer: Mapping[str, Any]) -> InputError | None:
    """The error for what torch raises in the midst of training because of an option of the trainer; ``None`` for all
    else."""
    text = str(error)
    reason = (text.strip().splitlines() or [type(error).__name__])[0]
    compilers = ("torch._dynamo", "torch._inductor")
    if trainer.get("compile") and type(error).__module__.startswith(compilers):
        return InputError(compile_failure(error))
    if trainer.get("deterministic") and "deterministic" in text:
        return InputError(
            f"trainer.deterministic={trainer['deterministic']}: {reason}; set trainer.deterministic=false"
        )
    if trainer.get("detect_anomaly") and "returned nan values" in text:
        return Divergence(f"training: {reason}; lower optimizer.lr, or look at the batch")
    if "gloo" in text and re.search(r"closed by peer|reset by peer|Timed out waiting", text):
        return InputError(
            "training: another process of this run has ended, so this one cannot go on; its reason is in its own "
            "messages, and the same command with the same hydra.run.dir resumes"
        )
    if "Expected to have finished reduction" in text:
        return InputError(
            "trainer.strategy: some parameters get a gradient in some steps only; set "
            "trainer.strategy=ddp_find_unused_parameters_true"
        )
    return None
