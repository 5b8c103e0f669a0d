"""The edit of busybox that lets a shell wait for its line: see guest/init/shell.c."""

from pathlib import Path

from .edits import Edit

_FUNCTIONS = r"""
/* For pykvm's agent: a text given to -c that stands for the line that comes over descriptor 3, with
 * a NUL at its end. All that does not depend on the line is done before it comes.
 *
 * Descriptor 4 is a page that the agent sees. This shell puts its status there when it has nothing
 * left to do and holds nothing any more. The kernel takes long to end a process, so it ends when
 * the agent has changed that; or soon, because the end alone tells an agent of the status if a
 * process in the background keeps the pipes open. */
static volatile uint32_t *told;

static char *awaited_line(void)
{
	size_t size = 8 * 1024, length = 0;
	char *line = xmalloc(size);
	ssize_t n;

	told = mmap(NULL, sizeof(*told), PROT_READ | PROT_WRITE, MAP_SHARED, 4, 0);
	if (told == MAP_FAILED)
		_exit(EXIT_FAILURE);
	close(4);
	/* Pages that are touched here take no fault when the line has come. */
	line[0] = 0;
	*told = 0;
	evalstring((char *)"{ echo; } >/dev/null", 0);
	unsetvar("_");
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

static void tell_status(int status)
{
	enum { FUTEX_WAIT = 0 };
	static const struct timespec soon = { 0, 50 * 1000 * 1000 };

	if (!told || !rootshell || chdir("/") < 0)
		return;
	if (syscall(SYS_close_range, 3, ~0U, 0) < 0)
		return;
	status = 0x100 | (status & 0xff);
	*told = status;
	syscall(SYS_close_range, 0, 2, 0);
	syscall(SYS_futex, told, FUTEX_WAIT, status, &soon);
}

"""[1:]

_INCLUDE = "#include <fnmatch.h>\n"
_INCLUDES = _INCLUDE + "#include <sys/mman.h>\n#include <sys/syscall.h>\n"
_DECLARED = "static int evalstring(char *s, int flags);\n"
_LEAVE = "\tflush_stdout_stderr();\n\t_exit(exitstatus);\n\t/* NOTREACHED */\n}\n"
_TELL = _LEAVE.replace("\t_exit", "\ttell_status(exitstatus);\n\t_exit")
_BEFORE = " state3:\n\tstate = 4;\n"
_USE = '\tif (minusc && !strcmp(minusc, "await-line-on-3"))\n\t\tminusc = awaited_line();\n'
EDITS = (
    Edit("shell/ash.c", _INCLUDE, _INCLUDES, "for the functions"),
    Edit("shell/ash.c", _DECLARED, _DECLARED + "\n" + _FUNCTIONS, "no program's start and end"),
    Edit("shell/ash.c", _BEFORE, _BEFORE + _USE, "the place where the line is used"),
    Edit("shell/ash.c", _LEAVE, _TELL, "the last thing that a shell does"),
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
