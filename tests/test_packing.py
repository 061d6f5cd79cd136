"""Packing: exact for every width and count, and laid out as the page says."""

from __future__ import annotations

import pytest
import torch

from bitsweep.packing import CHUNK, pack, pack_rows, pack_trits, packed_bytes, unpack, unpack_trits


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 1001])
@pytest.mark.parametrize("bits", range(1, 9))
def test_unpacking_gives_back_every_code(bits: int, count: int) -> None:
    codes = torch.arange(count).mul(37).remainder(2**bits).to(torch.uint8)
    packed = pack(codes, bits)
    assert packed.numel() == packed_bytes(count, bits) == -(-count * bits // 8)
    assert torch.equal(unpack(packed, bits, count), codes)


@pytest.mark.parametrize("count", [CHUNK, CHUNK + 1, 2 * CHUNK + 9])
def test_a_stream_longer_than_what_is_packed_at_a_time_has_no_seam(count: int) -> None:
    codes = torch.arange(count).mul(37).remainder(8).to(torch.uint8)
    packed = pack(codes, 3)
    assert packed.numel() == packed_bytes(count, 3)
    assert torch.equal(packed[-9:], pack(codes[-(24 + count % 8) :], 3)[-9:])
    assert torch.equal(unpack(packed, 3, count), codes)


def test_three_bit_codes_follow_each_other_from_the_lowest_bit() -> None:
    codes = torch.tensor([0b001, 0b010, 0b111], dtype=torch.uint8)
    #              code 2's low bits | code 1 | code 0      code 2's high bit
    assert pack(codes, 3).tolist() == [0b11_010_001, 0b1]


def test_four_bit_codes_go_two_to_a_byte_the_first_in_the_low_half() -> None:
    assert pack(torch.tensor([1, 2, 15], dtype=torch.uint8), 4).tolist() == [0x21, 0x0F]


@pytest.mark.parametrize("columns", [3, 8, 9])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_each_row_begins_at_a_byte_of_its_own(bits: int, columns: int) -> None:
    codes = torch.arange(2 * columns).mul(37).remainder(2**bits).to(torch.uint8).view(2, columns)
    assert torch.equal(pack_rows(codes, bits), torch.stack([pack(row, bits) for row in codes]))


def test_a_code_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="code of 4 does not fit 2 bits"):
        pack(torch.tensor([4], dtype=torch.uint8), 2)


@pytest.mark.parametrize("count", [0, 1, 5, 6, 1001])
def test_codes_of_three_values_go_five_to_a_byte(count: int) -> None:
    codes = torch.arange(count).mul(37).remainder(3).to(torch.uint8)
    packed = pack_trits(codes)
    assert packed.numel() == -(-count // 5)
    assert torch.equal(unpack_trits(packed, count), codes)


def test_the_first_of_three_values_is_the_lowest_digit() -> None:
    codes = torch.tensor([1, 2, 0, 0, 2, 1], dtype=torch.uint8)
    assert pack_trits(codes).tolist() == [1 + 2 * 3 + 2 * 81, 1]


def test_a_code_that_is_none_of_three_is_refused() -> None:
    with pytest.raises(ValueError, match="code of 3 is none of 0, 1 and 2"):
        pack_trits(torch.tensor([3], dtype=torch.uint8))
