"""What Ray Train wraps is told as what it is; the errors come pickled, as its controller sends them."""

import errno
import os
import pickle

import pytest
from ray.train import ControllerError, WorkerGroupError

from cluster.drives import S3Failed, S3Forbidden
from cluster.errors import RunBroken, UserError
from workflows.sft_failures import NoTryInVain, ended_by

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
FOR_A_PERSON = [UserError("other pictures"), FULL, S3Forbidden("S3 refuses access")]
MAY_PASS = [S3Failed("S3 failed"), OSError(errno.EIO, "I/O error"), RunBroken("no answer"), ValueError("a bug")]


def sent(error):
    return pickle.loads(pickle.dumps(error))


def of_ranks(*errors):
    return sent(WorkerGroupError("[Rank 0 Error Snippet]: a traceback", dict(enumerate(errors))))


def same(found, wanted):
    return type(found) is type(wanted) and str(found) == str(wanted)


@pytest.mark.parametrize("error", [*FOR_A_PERSON, *MAY_PASS[:-1]])
def test_a_training_ends_with_the_error_of_its_rank_or_controller(error):
    assert same(ended_by(of_ranks(error)), error)
    assert same(ended_by(of_ranks(RuntimeError("connection closed by peer"), error)), error)
    assert same(ended_by(sent(ControllerError(error))), error)


def test_what_is_for_a_person_comes_before_what_followed_from_it():
    assert same(ended_by(of_ranks(S3Failed("S3 failed"), FULL)), FULL)
    assert same(ended_by(of_ranks(S3Failed("a"), S3Failed("b"))), S3Failed("a"))


def test_a_bug_keeps_what_ray_train_says_of_it():
    assert ended_by(of_ranks(ValueError("a bug"))) is None
    assert ended_by(of_ranks()) is None
    assert ended_by(sent(ControllerError(ValueError("a bug")))) is None


@pytest.mark.parametrize("error", FOR_A_PERSON)
def test_what_is_for_a_person_is_not_tried_again(error):
    with pytest.raises(type(error)) as raised:
        NoTryInVain().after_exception(None, {1: error, 0: ValueError("what followed")})
    assert raised.value is error


def test_what_may_pass_is_tried_again():
    NoTryInVain().after_exception(None, dict(enumerate(MAY_PASS)))
