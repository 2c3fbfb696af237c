"""The article's claims and their evidence: a class and its tests, a theorem, or rows of the study."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Claim:
    """A claim of the article.

    Attributes:
        number: A1 to A12.
        text: the claim.
        answer: what the tests show; empty for a claim that rows of the study answer.
        tests: files of these tests, in ``tests/reshapers``.
    """

    number: str
    text: str
    answer: str = ""
    tests: tuple[str, ...] = ()

    @property
    def command(self) -> str:
        """Return the command that runs the tests of a claim; empty if it has none."""
        return f"python -m pytest {' '.join(f'tests/reshapers/{name}' for name in self.tests)}" if self.tests else ""


THEOREMS = (
    "Theorems, which tests check for every class: cross-attention is invariant to a permutation of its tokens together "
    "with their encodings, self-attention is equivariant, XᵀX stays the same; and an MLP whose tokens are permuted "
    "before training is the same MLP."
)

CLAIMS = (
    Claim("A1", "Pooling and strided convolution reshape H×W to H/2×W/2, or unevenly", "they do",
          ("test_pool.py", "test_strided_conv.py")),
    Claim("A2", "One fully connected layer reshapes: O = σ(W·X + b), from the left", "it does", ("test_mlp.py",)),
    Claim("A3", "A deeper MLP reshapes too, and a projection changes channels", "it does", ("test_mlp.py",)),
    Claim("A4", "Cross-attention reshapes: O = softmax(Q·Kᵀ/√d)·V, K and V from X", "it does", ("test_attention.py",)),
    Claim("A5", "Without softmax and scale it is O = Ø·Wq·Wkᵀ·(XᵀX)·Wv", "it is", ("test_attention.py",)),
    Claim("A6", "Self-attention keeps the shape", "it does", ("test_attention.py",)),
    Claim("A7", "The MLP’s W is fixed after training, the attention’s changes with X"),
    Claim("A8", "For a fixed camera an MLP learns one fixed mapping; attention converges later and needs more"),
    Claim("A9", "Attention may have the higher ceiling, since W adapts to the input"),
    Claim("A10", "Cross-attention is invariant to the order of its tokens, self-attention equivariant", "theorem",
          ("test_attention.py",)),
    Claim("A11", "Attention needs positional encoding; the MLP needs none"),
    Claim("A12", "A random permutation can destroy an MLP’s result"),
)  # fmt: skip
