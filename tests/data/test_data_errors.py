"""Errors of the data are known as such, wherever they are found, and their messages have no traceback."""

import pickle
from dataclasses import dataclass

import pytest
from torch.utils.data import Dataset

from bevreshape.comparison.failures import attempt
from bevreshape.data.image_io import CorruptImageError
from bevreshape.errors import DataError, InputError, user_message
from bevreshape.training.stopping import Loader

MESSAGE = "camera.jpg: the image is truncated or damaged (InputError: 3 bytes); copy it again"


@dataclass
class Damaged(Dataset[int]):
    """Numbers up to 2, of which the last cannot be read."""

    kind: type[Exception]

    def __getitem__(self, index: int) -> int:
        if index == 2:
            try:
                raise KeyError("cause")
            except KeyError as error:
                raise self.kind(MESSAGE) from error
        return index

    def __len__(self) -> int:
        return 3


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("kind", [InputError, CorruptImageError])
def test_a_sample_that_cannot_be_read(kind: type[InputError], workers: int) -> None:
    batches = iter(Loader(Damaged(kind), 1, num_workers=workers))
    assert [int(next(batches)), int(next(batches))] == [0, 1]
    with pytest.raises(DataError) as raised:
        next(batches)
    assert str(raised.value) == user_message(raised.value) == MESSAGE
    pickle.loads(pickle.dumps(raised.value))  # other processes of a run pass it on


def test_other_errors_of_a_sample_keep_their_traceback() -> None:
    with pytest.raises(ZeroDivisionError, match="Original Traceback"):
        list(Loader(Damaged(ZeroDivisionError), 1, num_workers=1))


def test_a_sample_that_cannot_be_read_is_no_failure_of_a_view_transformer() -> None:
    with pytest.raises(DataError, match="the image is truncated or damaged"):
        attempt(lambda: list(Loader(Damaged(CorruptImageError), 1)))
    assert attempt(refuse)[1] == "reshaper: it does not fit"


def refuse() -> None:
    raise InputError("reshaper: it does not fit")
