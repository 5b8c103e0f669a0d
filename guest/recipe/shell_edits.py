"""The edit of busybox that lets a shell wait for its line: see guest/init/shell.c."""

from pathlib import Path

from .edits import Edit

_FUNCTION = r"""
/* For pykvm's agent: a text given to -c that stands for the line that comes over descriptor 3, with
 * a NUL at its end. All that does not depend on the line is done before it comes. */
static char *awaited_line(void)
{
	char *line = NULL;
	size_t size = 0, length = 0;
	ssize_t n;

	if (full_write(STDOUT_FILENO, "", 1) != 1)
		_exit(EXIT_FAILURE);
	do {
		if (size - length < 4096)
			line = xrealloc(line, size += 64 * 1024);
		n = safe_read(3, line + length, size - length);
		if (n <= 0)
			_exit(EXIT_FAILURE);
		length += n;
	} while (line[length - 1]);
	close(3);
	return line;
}

"""[1:]

_MAIN = "int ash_main(int argc, char **argv) MAIN_EXTERNALLY_VISIBLE;\n"
_BEFORE = " state3:\n\tstate = 4;\n"
_USE = '\tif (minusc && !strcmp(minusc, "await-line-on-3"))\n\t\tminusc = awaited_line();\n'

EDITS = (
    Edit("shell/ash.c", _MAIN, _FUNCTION + _MAIN, "a command without a program's start"),
    Edit("shell/ash.c", _BEFORE, _BEFORE + _USE, "the place where the line is used"),
)


def apply(source: Path) -> None:
    """Makes the edits in a fresh source tree. Raises ValueError when one does not fit."""
    for edit in EDITS:
        file = source / edit.path
        text = file.read_text()
        if text.count(edit.old) != 1:
            raise ValueError(
                f"busybox's {edit.path} is not as guest/recipe/shell_edits.py expects: "
                f"{edit.old.strip()!r} occurs {text.count(edit.old)} times, not once"
            )
        file.write_text(text.replace(edit.old, edit.new))
