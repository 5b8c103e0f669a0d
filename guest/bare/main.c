/* What the command line asks for: a script, or one of a few ways to end a run. */
#include "guest.h"

/* The start of PVH's hvm_start_info, and one entry of its module list. */
struct start_info {
	uint32_t magic;
	uint32_t version;
	uint32_t flags;
	uint32_t modules;
	uint64_t module_list;
	uint64_t command_line;
};

struct module {
	uint64_t address;
	uint64_t size;
	uint64_t command_line;
	uint64_t reserved;
};

enum { STATUS_NO_SCRIPT = 0xd0, STATUS_SCRIPT_STOPPED = 0xd1, STATUS_UNKNOWN_MODE = 0xd2 };

static void run_script(const struct start_info *info)
{
	const struct module *module = (const struct module *)info->module_list;
	const struct script_header *script;

	if (!info->modules || module->size < sizeof *script)
		leave(STATUS_NO_SCRIPT);
	script = (const struct script_header *)module->address;
	if (script->magic != SCRIPT_MAGIC || script->size < sizeof *script ||
	    script->size > module->size)
		leave(STATUS_NO_SCRIPT);
	if (script->tsc_khz)
		tsc_khz = script->tsc_khz;
	apic_start();
	interpret(0, (const uint8_t *)(script + 1), script->size - sizeof *script);
	leave(results_of(0)->state == RUN_FINISHED ? 0 : STATUS_SCRIPT_STOPPED);
}

/* Echo what arrives on COM1 until Ctrl-D. */
static void run_echo(void)
{
	for (;;) {
		uint8_t byte;

		while (!(in8(0x3fd) & 1))
			relax();
		byte = in8(0x3f8);
		if (byte == 4)
			leave(0);
		out8(0x3f8, byte);
	}
}

static bool take_word(const char **line, const char *word)
{
	const char *at = *line;

	while (*word && *at == *word)
		at++, word++;
	if (*word || (*at && *at != ' '))
		return false;
	while (*at == ' ')
		at++;
	*line = at;
	return true;
}

static uint8_t number(const char *digits)
{
	unsigned value = 0;

	while (*digits >= '0' && *digits <= '9')
		value = 10 * value + (*digits++ - '0');
	return value;
}

__attribute__((noreturn)) void guest_main(uint32_t cpu, const struct start_info *info)
{
	const char *line;

	if (cpu)
		smp_other(cpu);
	line = info->command_line ? (const char *)info->command_line : "";
	while (*line == ' ')
		line++;
	if (take_word(&line, "script")) {
		run_script(info);
	} else if (take_word(&line, "hello")) {
		print("hello from CPL3\n");
		leave(number(line));
	} else if (take_word(&line, "exit")) {
		leave(number(line));
	} else if (take_word(&line, "echo")) {
		run_echo();
	} else if (take_word(&line, "halt")) {
		halt();
	} else if (take_word(&line, "idle")) {
		for (;;)
			gate(GATE_IDLE, (uint64_t)irq_counts, 0);
	} else if (take_word(&line, "spin")) {
		for (;;)
			relax();
	} else if (take_word(&line, "triple")) {
		gate(GATE_NO_IDT, 0, 0);
		__asm__ volatile("ud2");
	} else if (take_word(&line, "fault")) {
		*(volatile uint32_t *)0x100000000ull = 0;
	} else if (take_word(&line, "reset")) {
		out8(0x64, 0xfe);
		halt();
	} else if (take_word(&line, "panic")) {
		out8(0x505, 1);
		halt();
	}
	print("bare guest: unknown mode\n");
	leave(STATUS_UNKNOWN_MODE);
}
