"""Running the command line inside the test's own process."""

import json


class Runner:
    """Calls ``zopeft`` and keeps what it wrote.

    Args:
        capsys: pytest's capture of the streams.
    """

    def __init__(self, capsys):
        self.capsys = capsys

    def __call__(self, *words):
        from zopeft.cli.main import main

        self.capsys.readouterr()
        code = main([str(word) for word in words])
        out, err = self.capsys.readouterr()
        return code, out, err

    def json(self, *words):
        code, out, err = self(*words, "--json")
        assert code == 0, err
        assert out.count("\n") == 1
        return json.loads(out)

    def refused(self, *words, code=2):
        """Returns the one line of an error."""
        found, out, err = self(*words)
        assert found == code, err
        assert out == ""
        lines = [line for line in err.splitlines() if line.startswith("zopeft: ")]
        assert len(lines) == 1
        assert err.splitlines()[-1] == lines[0]
        assert "Traceback" not in err
        return lines[0]
