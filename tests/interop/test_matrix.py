"""The plugin that writes the matrix: what tests say becomes a table; one that says something else is an error."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.interop import matrix

if TYPE_CHECKING:
    from pathlib import Path

pytest_plugins = ("pytester",)

TESTS = """
    import pytest

    pytestmark = pytest.mark.{mark}("MQTT {{version}}", ours="broker", peer="paho-mqtt")

    @pytest.mark.parametrize("version", ["3.1.1", "5.0"])
    @pytest.mark.parametrize("qos", [0, 2])
    @pytest.mark.{mark}("QoS {{qos}}")
    def test_qos(version, qos, record_property):
        record_property("matrix QoS 2", "exactly | once")

    @pytest.mark.{mark}("datagrams", ours="client", peer="mqttv5", refused=True, note="too large")
    def test_datagrams():
        {body}

    def test_that_shows_nothing():
        pass
""".replace("{mark}", "mat" + "rix")  # not to be found by marked_files()


@pytest.fixture
def file(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the plugin writes to, with its tests in a folder of their own."""
    path = pytester.path / "MATRIX.md"
    monkeypatch.setattr(matrix, "FILE", path)
    monkeypatch.setattr(matrix, "TESTS", pytester.path)
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    return path


PLUGIN = ("-p", "tests.interop.matrix", "-o", "asyncio_default_fixture_loop_scope=function")


def run(pytester: pytest.Pytester, *options: str, body: str = "pass") -> tuple[int, str]:
    """Run the tests above in this process; returns exit code and output."""
    pytester.makepyfile(test_them=TESTS.format(body=body))
    done = pytester.runpytest_inprocess(*PLUGIN, *options)
    return int(done.ret), done.stdout.str()


def test_what_tests_saw_is_written(pytester: pytest.Pytester, file: Path) -> None:
    assert run(pytester, "--matrix")[0] == 0
    text = file.read_text()
    assert "| QoS 2 | yes | exactly \\| once |" in text
    assert "| QoS 0 | yes |\n" in text
    assert "| MQTT 3.1.1 | yes |\n" in text
    assert "| datagrams | refused | too large |" in text
    assert "Tests: test_them.py.\n" in text
    assert text.count("\n## ") == 2
    assert run(pytester)[0] == 0  # which compares


def test_a_file_that_says_something_else_fails_the_run(pytester: pytest.Pytester, file: Path) -> None:
    run(pytester, "--matrix")
    file.write_text(file.read_text().replace("too large", "too small"))
    code, output = run(pytester)
    assert code == pytest.ExitCode.TESTS_FAILED
    assert "is not what the tests saw" in output


@pytest.mark.parametrize(
    ("options", "body"),
    [
        (["-k", "qos"], "pass"),
        (["test_them.py::test_datagrams"], "pass"),
        ([], "pytest.skip('no peer')"),
        ([], "raise ValueError"),
    ],
)
def test_a_run_of_a_part_says_nothing(pytester: pytest.Pytester, file: Path, options: list[str], body: str) -> None:
    failed = int("raise" in body)
    assert run(pytester, *options, body=body)[0] == failed  # there is no file, and nobody asks for it
    code, output = run(pytester, "--matrix", *options, body=body)
    assert code == pytest.ExitCode.TESTS_FAILED
    assert "was not written" in output
    assert not file.exists()


def test_a_missing_file_of_tests_is_noticed(pytester: pytest.Pytester, file: Path) -> None:
    pytester.makepyfile(test_others=TESTS.format(body="pass"))
    code, output = run(pytester, "--matrix", "test_them.py")
    assert code == pytest.ExitCode.TESTS_FAILED
    assert "without test_others.py" in output


def test_a_name_that_the_matrix_does_not_have(pytester: pytest.Pytester, file: Path) -> None:
    pytester.makepyfile(test_them=TESTS.format(body="pass").replace("datagrams", "datagramms"))
    done = pytester.runpytest_inprocess(*PLUGIN)
    assert int(done.ret) == pytest.ExitCode.USAGE_ERROR
    assert "datagramms" in done.stderr.str() + done.stdout.str()


def test_outcomes_are_put_together() -> None:
    def cell(*outcomes: str) -> Any:
        return matrix.Cell(set(outcomes)).word

    assert [cell("yes"), cell("refused"), cell("yes", "refused")] == ["yes", "refused", "depends"]
    assert [cell("yes", "skipped"), cell("yes", "skipped", "failed")] == ["skipped", "failed"]
