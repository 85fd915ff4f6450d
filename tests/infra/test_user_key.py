"""The key of the user: made once, private, and not needed where nothing can be stored."""

from pathlib import Path

import pytest

from astra_rl.infra.user_key import KEY_BYTES, user_key


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ASTRA_RL_CACHE", str(tmp_path / "cache"))
    user_key.cache_clear()
    yield tmp_path / "cache"
    user_key.cache_clear()


def test_it_is_made_once_and_readable_by_its_user_only(cache: Path):
    key = user_key()
    assert (cache / "user.key").read_bytes() == key
    assert (cache / "user.key").stat().st_mode & 0o777 == 0o600
    user_key.cache_clear()
    assert user_key() == key


def test_of_two_processes_that_make_it_at_once_both_have_that_of_the_first(
    cache: Path, monkeypatch: pytest.MonkeyPatch
):
    made = [b"1" * KEY_BYTES, b"2" * KEY_BYTES]

    def make(count: int) -> bytes:
        mine = made.pop()
        if made:  # the other process makes its key meanwhile
            other.append(user_key.__wrapped__())
        return mine

    other: list[bytes] = []
    monkeypatch.setattr("astra_rl.infra.user_key.secrets.token_bytes", make)
    assert user_key() == other[0] == (cache / "user.key").read_bytes()
    assert [path.name for path in cache.iterdir()] == ["user.key"]


def test_a_damaged_key_is_replaced(cache: Path):
    user_key()
    (cache / "user.key").write_bytes(b"short")
    user_key.cache_clear()
    assert user_key() == (cache / "user.key").read_bytes()


def test_without_a_cache_folder_it_is_of_this_process_only(cache: Path):
    cache.write_text("a file, not a folder")
    assert user_key() == user_key()
