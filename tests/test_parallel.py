"""Pieces of work side by side: order, threads, errors."""

import os
from functools import partial

import pytest
import torch

from nestor.training.parallel import side_by_side


def _told(base: int, item: int) -> tuple[int, int, int]:
    return base + item, torch.get_num_threads(), os.getpid()


def _broken(item: int) -> int:
    if item == 1:
        raise ValueError(f"item {item} cannot be done")
    return item


def test_results_come_in_order_from_processes_of_one_thread():
    found = side_by_side(partial(_told, 10), range(4), processes=2)
    assert [value for value, _, _ in found] == [10, 11, 12, 13]
    assert {threads for _, threads, _ in found} == {1}
    assert os.getpid() not in {process for _, _, process in found}


def test_a_single_piece_or_process_stays_here():
    threads = torch.get_num_threads()
    assert side_by_side(partial(_told, 0), [5]) == [(5, threads, os.getpid())]
    assert side_by_side(partial(_told, 0), [1, 2], processes=1) == [
        (1, threads, os.getpid()),
        (2, threads, os.getpid()),
    ]
    assert side_by_side(partial(_told, 0), []) == []


def test_an_error_of_a_piece_is_the_error_of_all():
    with pytest.raises(ValueError, match="item 1 cannot be done"):
        side_by_side(_broken, range(4), processes=2)
    with pytest.raises(ValueError, match="processes must be at least 1; got 0"):
        side_by_side(_broken, range(4), processes=0)
