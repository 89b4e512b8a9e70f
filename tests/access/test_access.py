"""The password, the file that keeps its hash, sessions and delays, each by itself."""

from __future__ import annotations

import json
import logging
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.access import password
from core.access.access import Access, TooManyAttempts
from core.access.delays import MAX_CLIENTS, ONE_CLIENT, Delays, group_of
from core.access.environment_password import GivenPassword, hand_over, take_password
from core.access.password import hash_password, is_password
from core.access.secret_file import CLOSED, SecretFile
from core.access.sessions import SESSION_S, Sessions
from core.access.single_sign_on import allow_list, is_on_list
from core.common.errors import DeckError, InputError
from core.common.json_file import FileDamaged

PASSWORD = "correct horse 电池"


class Clock:
    """Time that passes when a test says so."""

    def __init__(self) -> None:
        self.now_s = 1_000_000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture(autouse=True)
def quick_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(password, "LOG2_N", 4)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def file(tmp_path: Path) -> SecretFile:
    return SecretFile(tmp_path / "data" / "access.json")


@pytest.fixture
def access(file: SecretFile, clock: Clock) -> Access:
    return Access(file, {}, now=clock, clock=clock)


# The password ---------------------------------------------------------------------------------------------------------


def test_a_hash_costs_what_it_should(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    record = hash_password(PASSWORD)
    assert record.startswith("scrypt$15$8$3$") and is_password(PASSWORD, record)


def test_only_the_password_itself_is_the_password() -> None:
    record = hash_password(PASSWORD)
    assert is_password(PASSWORD, record)
    wrong = ["", PASSWORD + " ", PASSWORD + "\0", PASSWORD[:-1], PASSWORD.upper(), "\0", "x" * 100_000, "\udcff"]
    assert not any(is_password(text, record) for text in wrong)


def test_two_ways_to_type_a_letter_are_one_password() -> None:
    assert is_password("cafe\u0301 au lait", hash_password("café au lait"))


def test_a_hash_names_no_password_and_no_two_are_the_same() -> None:
    one, two = hash_password(PASSWORD), hash_password(PASSWORD)
    assert one != two and PASSWORD not in one


@pytest.mark.parametrize("record", ["", "scrypt", "plain$correct horse", "scrypt$15$8$3$!$!", "scrypt$x$8$3$AA==$AA=="])
def test_what_is_no_hash_lets_nobody_in(record: str) -> None:
    assert not is_password("", record) and not is_password(PASSWORD, record)


@pytest.mark.parametrize("text", ["", "1234567", "x" * 257])
def test_a_password_has_a_length(access: Access, text: str) -> None:
    with pytest.raises(InputError):
        access.set_password(text)
    assert not access.has_password


# The file -------------------------------------------------------------------------------------------------------------


def test_the_file_is_its_owners_alone_and_holds_no_password(access: Access, file: SecretFile) -> None:
    access.set_password(PASSWORD)
    access.sessions.begin()
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600
    assert "horse" not in file.path.read_text("utf-8")
    assert "scrypt" not in repr(file.read()) and file.read().secret not in repr(file.read())


def test_another_process_sets_the_password_of_a_running_one(access: Access, file: SecretFile) -> None:
    Access(SecretFile(file.path), {}).set_password(PASSWORD)
    assert access.has_password and access.try_password(PASSWORD, "192.0.2.1")
    Access(SecretFile(file.path), {}).remove_password()
    assert not access.has_password


@pytest.mark.parametrize("content", ["", "[]", '{"password": 1}', "{" * 100_000, '{"password": "x", "secret": "y"}'])
def test_a_damaged_file_lets_nobody_in_and_is_not_quoted(
    file: SecretFile, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A password that cannot be read was once taken for none: on this machine everybody was let in."""
    file.path.parent.mkdir()
    file.path.write_text(content, "utf-8")
    access = Access(file, {})
    assert access.has_password and access.is_damaged
    assert not access.sessions.is_valid("x~9999999999.y")
    assert not access.try_password(CLOSED, "192.0.2.1") and not access.try_password("", "192.0.2.1")
    assert "is not used" in caplog.text and "{{" not in caplog.text
    with pytest.raises(FileDamaged):
        access.set_password(PASSWORD)
    assert file.path.read_text("utf-8") == content
    aside = access.set_damaged_aside()
    assert aside is not None and aside.read_text("utf-8") == content
    access.set_password(PASSWORD)
    assert access.try_password(PASSWORD, "192.0.2.1") and access.set_damaged_aside() is None


def test_a_session_that_ends_here_does_not_live_again_where_another_ends(file: SecretFile) -> None:
    """Both once read who had ended, and the second to write took the first one's end out again."""
    one, other = Access(file, {}), Access(SecretFile(file.path), {})
    one.set_password(PASSWORD)
    first, second = one.sessions.begin(), one.sessions.begin()
    with one._file.file.change():
        ending = threading.Thread(target=other.sessions.end, args=(second,))
        ending.start()
    one.sessions.end(first)
    ending.join(10)
    assert not one.sessions.is_valid(first) and not one.sessions.is_valid(second)


def test_a_file_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("no folder", "utf-8")
    access = Access(SecretFile(tmp_path / "data" / "access.json"), {})
    with pytest.raises(DeckError, match="could not be written"):
        access.set_password(PASSWORD)


# The environment ------------------------------------------------------------------------------------------------------


def test_the_environments_password_stands_above_the_file_and_does_not_stay_there(file: SecretFile) -> None:
    Access(file, {}).set_password("the one in the file")
    environment = {"LLAMADECK_PASSWORD": PASSWORD, "PATH": "/bin"}
    access = Access(file, environment)
    assert environment == {"PATH": "/bin"}
    assert access.is_from_environment and access.try_password(PASSWORD, "192.0.2.1")
    assert not access.try_password("the one in the file", "192.0.2.1")
    for change in (lambda: access.set_password("another one"), access.remove_password):
        with pytest.raises(DeckError, match="LLAMADECK_PASSWORD"):
            change()


def test_a_short_password_of_the_environment_is_none(file: SecretFile, caplog: pytest.LogCaptureFixture) -> None:
    assert not Access(file, {"LLAMADECK_PASSWORD": "sesame"}).has_password
    assert "LLAMADECK_PASSWORD is not used" in caplog.text and "sesame" not in caplog.text


def test_a_file_may_hold_the_password(file: SecretFile, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    given = tmp_path / "given"
    given.write_text(f"{PASSWORD}\n")
    environment = {"LLAMADECK_PASSWORD_FILE": str(given)}
    access = Access(file, environment)
    assert environment == {}
    assert access.try_password(PASSWORD, "192.0.2.1")
    with pytest.raises(DeckError, match="LLAMADECK_PASSWORD_FILE"):
        access.remove_password()
    given.write_text("\n")
    assert not Access(file, {"LLAMADECK_PASSWORD_FILE": str(given)}).has_password
    assert not Access(file, {"LLAMADECK_PASSWORD_FILE": str(tmp_path / "none")}).has_password
    assert caplog.text.count("LLAMADECK_PASSWORD_FILE") == 2 and str(tmp_path / "none") in caplog.text


@pytest.mark.parametrize("content", [f"\ufeff{PASSWORD}", f"\ufeff{PASSWORD}\r\n", f"{PASSWORD}\r\n"])
def test_a_file_of_the_password_may_begin_and_end_as_editors_write_it(tmp_path: Path, content: str) -> None:
    """With the mark that Windows' editors put before UTF-8, nobody could sign in."""
    given = tmp_path / "given"
    given.write_bytes(content.encode())
    assert take_password({"LLAMADECK_PASSWORD_FILE": str(given)}).text == PASSWORD


def test_the_password_is_handed_over_once_and_is_in_no_environment() -> None:
    environment: dict[str, str] = {}
    hand_over(GivenPassword(PASSWORD), environment)
    assert PASSWORD not in str(environment)
    assert take_password(environment) == GivenPassword(PASSWORD)
    assert environment == {}


# Sessions -------------------------------------------------------------------------------------------------------------


def test_a_session_lives_until_it_expires(access: Access, clock: Clock) -> None:
    access.set_password(PASSWORD)
    token = access.sessions.begin()
    clock.now_s += SESSION_S - 1
    assert access.sessions.is_valid(token)
    clock.now_s += 1
    assert not access.sessions.is_valid(token)


def test_signing_out_ends_one_session_for_every_process(access: Access, file: SecretFile, clock: Clock) -> None:
    access.set_password(PASSWORD)
    one, two = access.sessions.begin(), access.sessions.begin()
    access.sessions.end(one)
    other = Access(SecretFile(file.path), {}, now=clock)
    for sessions in (access.sessions, other.sessions):
        assert not sessions.is_valid(one) and sessions.is_valid(two)


def test_two_who_leave_at_once_have_both_left(access: Access) -> None:
    access.set_password(PASSWORD)
    tokens = [access.sessions.begin() for _ in range(20)]
    with ThreadPoolExecutor(10) as pool:
        list(pool.map(access.sessions.end, tokens))
    assert not any(map(access.sessions.is_valid, tokens))


def test_what_has_expired_is_not_kept_as_ended(access: Access, file: SecretFile, clock: Clock) -> None:
    access.set_password(PASSWORD)
    access.sessions.end(access.sessions.begin())
    clock.now_s += SESSION_S + 1
    access.sessions.end(access.sessions.begin())
    assert len(file.read().ended) == 1


def test_another_password_and_signing_out_everywhere_end_every_session(access: Access) -> None:
    access.set_password(PASSWORD)
    for end_all in (lambda: access.set_password("another password"), access.sessions.end_all, access.remove_password):
        token = access.sessions.begin()
        assert access.sessions.is_valid(token)
        end_all()
        assert not access.sessions.is_valid(token)


def test_the_same_password_set_again_ends_them_too(access: Access) -> None:
    access.set_password(PASSWORD)
    token = access.sessions.begin()
    access.set_password(PASSWORD)
    assert not access.sessions.is_valid(token)


def test_a_token_of_another_installation_is_none(access: Access, tmp_path: Path) -> None:
    access.set_password(PASSWORD)
    other = Access(SecretFile(tmp_path / "other.json"), {})
    other.set_password(PASSWORD)
    assert not access.sessions.is_valid(other.sessions.begin())


@given(st.text(max_size=300))
def test_no_text_is_a_token(text: str) -> None:
    sessions = Sessions(MemoryFile(), lambda: "scrypt$1")
    assert not sessions.is_valid(text)


@given(st.integers(0, 200), st.characters(min_codepoint=33, max_codepoint=126))
def test_a_token_with_one_letter_changed_is_none(place: int, letter: str) -> None:
    sessions = Sessions(MemoryFile(), lambda: "scrypt$1")
    token = sessions.begin()
    forged = token[: place % len(token)] + letter + token[place % len(token) + 1 :]
    assert forged == token or not sessions.is_valid(forged)


def test_other_letters_for_the_same_bytes_are_no_token() -> None:
    """Base64 is read leniently: "+" counts as "-", and the last letter of 43 carries 4 bits of 6."""
    sessions = Sessions(MemoryFile(), lambda: "scrypt$1")
    tokens = [sessions.begin() for _ in range(100)]
    with_dash = [token for token in tokens if "-" in token.rpartition(".")[2]]
    others = [
        signed + "." + signature.replace("-", "+") for signed, _, signature in (t.rpartition(".") for t in with_dash)
    ]
    others += [token[:-1] + chr(ord(token[-1]) + 1) for token in tokens]
    assert with_dash and not any(sessions.is_valid(other) for other in others)
    assert all(sessions.is_valid(token) for token in tokens)


class MemoryFile(SecretFile):
    """One secret and nothing on the disk."""

    def __init__(self) -> None:
        super().__init__(Path("/nonexistent/access.json"))

    def secret(self) -> str:
        return "5ec4e7"


# Delays ---------------------------------------------------------------------------------------------------------------


def test_failures_cost_more_and_more_time(clock: Clock) -> None:
    delays = Delays(clock)
    waits = []
    for _ in range(8):
        while wait_s := delays.begin("192.0.2.1"):
            waits.append(wait_s)
            clock.now_s += wait_s
    assert waits == [1.0, 2.0, 4.0, 8.0]


def test_a_wait_ends_at_a_quarter_of_an_hour_and_an_hour_forgets(clock: Clock) -> None:
    delays = Delays(clock)
    for _ in range(40):
        clock.now_s += delays.begin("192.0.2.1")
    assert 0 < delays.begin("192.0.2.1") <= ONE_CLIENT.longest_s
    clock.now_s += 3601
    assert delays.begin("192.0.2.1") == 0


def test_the_right_password_forgets_what_was_mistyped(access: Access) -> None:
    access.set_password(PASSWORD)
    for _ in range(2):
        for _ in range(3):
            assert not access.try_password("wrong password", "192.0.2.1")
        assert access.try_password(PASSWORD, "192.0.2.1")


def test_whoever_has_to_wait_is_not_even_compared(access: Access, clock: Clock) -> None:
    access.set_password(PASSWORD)
    for _ in range(ONE_CLIENT.free):
        assert not access.try_password("wrong password", "192.0.2.1")
    with pytest.raises(TooManyAttempts) as caught:
        access.try_password(PASSWORD, "192.0.2.1")
    assert 0 < caught.value.wait_s <= 1
    assert access.try_password(PASSWORD, "192.0.2.2")


def test_the_memory_of_failures_has_an_end(clock: Clock) -> None:
    delays = Delays(clock)
    for number in range(MAX_CLIENTS + 500):
        clock.now_s += 5
        assert delays.begin(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}") == 0
    assert len(delays._clients) == MAX_CLIENTS


@pytest.mark.parametrize(
    ("address", "group"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::9", "2001:db8:1:2::/64"),
        ("no address" * 100, ("no address" * 100)[:64]),
    ],
)
def test_who_counts_as_one(address: str, group: str) -> None:
    assert group_of(address) == group


def test_a_wrong_password_is_in_the_log_by_its_address_only(access: Access, caplog: pytest.LogCaptureFixture) -> None:
    access.set_password(PASSWORD)
    with caplog.at_level(logging.DEBUG):
        access.try_password("hunter22hunter", "192.0.2.1\nFAKE LINE")
    assert "192.0.2.1" in caplog.text and "\nFAKE" not in caplog.text
    assert "hunter22" not in caplog.text and "scrypt" not in caplog.text


def test_the_file_on_the_disk_is_whole_json(access: Access, file: SecretFile) -> None:
    access.set_password(PASSWORD)
    assert set(json.loads(file.path.read_text("utf-8"))) == {"password", "secret", "ended"}


# People of a provider -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("section", "address", "expected"),
    [
        ({"allow": ["Ann@example.org"]}, "ann@example.org", True),
        ({"allow": "ann@example.org"}, "ann@example.org", True),
        ({"allow": ["*@example.net"]}, "bob@example.net", True),
        ({"allow": ["*@example.net"]}, "bob@example.net.evil", False),
        ({"allow": ["*@example.net"]}, "", False),
        ({"allow": ["*"]}, "", True),
        ({"allow": []}, "ann@example.org", False),
        ({"allow": 5}, "ann@example.org", False),
        ({}, "ann@example.org", False),
        (None, "ann@example.org", False),
        ("allow", "ann@example.org", False),
    ],
)
def test_only_who_is_on_the_list_may_come_in(section: object, address: str, expected: bool) -> None:
    """Without a list whoever the provider knew once came in: half the world, of a large one."""
    assert is_on_list(address, allow_list(section)) == expected
