/* Large tools (fio, mke2fs, ...), unpacked from the ramdisk on first use.
 *
 * Unpacking costs the kernel about a million instructions per megabyte, which is seconds where the
 * host emulates kernel code, in every boot, for tools that most boots never run. So the ramdisk
 * holds them in one member that the kernel cannot create (its folder does not exist) and skips.
 * `retain_initrd` keeps the ramdisk in memory; each tool's name is a link to this program, which
 * finds the tool there, puts it in its link's place, and becomes it.
 *
 * The member is an archive of the same format ("newc" cpio), whose names are the tools'.
 */
#define _GNU_SOURCE 1

#include "guest.h"

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { MAGIC = 6, FIELD = 8, FIELD_SIZE = 6, FIELD_NAME_SIZE = 11, HEADER_SIZE = 110 };
enum { PAGE = 4096 };

/* Where Linux's boot protocol keeps the ramdisk's address and size (setup_header). */
enum { RAMDISK_IMAGE = 0x218, RAMDISK_SIZE = 0x21c };

static const char ARCHIVE[] = ".tools/archive";

struct bytes {
    const uint8_t *at;
    size_t size;
};

static size_t header_field(const uint8_t *header, int index)
{
    char digits[FIELD + 1] = {0};

    memcpy(digits, header + MAGIC + index * FIELD, FIELD);
    return strtoul(digits, NULL, 16);
}

static size_t aligned(size_t value)
{
    return (value + 3) & ~(size_t)3;
}

/* The data of the member `name`; its `at` is NULL when there is none. */
static struct bytes find_member(struct bytes archive, const char *name)
{
    size_t at = 0;

    while (at + HEADER_SIZE < archive.size && !memcmp(archive.at + at, "07070", MAGIC - 1)) {
        const uint8_t *header = archive.at + at;
        size_t name_size = header_field(header, FIELD_NAME_SIZE);
        size_t data = at + aligned(HEADER_SIZE + name_size);
        size_t size = header_field(header, FIELD_SIZE);

        if (name_size == 0 || data > archive.size || size > archive.size - data)
            break;
        if (name_size == strlen(name) + 1 && !memcmp(header + HEADER_SIZE, name, name_size))
            return (struct bytes){archive.at + data, size};
        at = data + aligned(size);
    }
    return (struct bytes){0};
}

/* The ramdisk as the boot loader left it, mapped; its `at` is NULL when that is not possible. */
static struct bytes map_ramdisk(void)
{
    uint32_t place[2];
    size_t offset;
    uint8_t *mapped;
    int parameters = open("/sys/kernel/boot_params/data", O_RDONLY | O_CLOEXEC);
    int memory = open("/dev/mem", O_RDONLY | O_CLOEXEC);

    _Static_assert(RAMDISK_SIZE == RAMDISK_IMAGE + 4, "one read takes both");
    if (parameters < 0 || memory < 0
        || pread(parameters, place, sizeof place, RAMDISK_IMAGE) != sizeof place || !place[1])
        return (struct bytes){0};
    offset = place[0] % PAGE;
    mapped = mmap(NULL, place[1] + offset, PROT_READ, MAP_SHARED, memory, place[0] - offset);
    close(parameters);
    close(memory);
    if (mapped == MAP_FAILED)
        return (struct bytes){0};
    return (struct bytes){mapped + offset, place[1]};
}

/* Writes the tool and moves it into its link's place. Returns 0, or -1 with errno set. */
static int install(struct bytes tool, const char *path)
{
    /* Two commands may want the same tool at once; a process id keeps them apart. */
    char temporary[] = "/bin/.tool-00000000";
    unsigned pid = (unsigned)getpid();
    int failed;
    int fd;

    for (size_t i = sizeof temporary - 2; pid; pid /= 10)
        temporary[i--] = (char)('0' + pid % 10);
    fd = open(temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0755);
    if (fd < 0)
        return -1;
    failed = write_all(fd, tool.at, tool.size) < 0;
    failed |= close(fd) < 0;
    if (!failed && rename(temporary, path) == 0)
        return 0;
    failed = errno;
    unlink(temporary);
    errno = failed;
    return -1;
}

static int complain(const char *name, const char *what, const char *why)
{
    const char *parts[] = {name, what, why, "\n"};

    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        (void)write_all(STDERR_FILENO, parts[i], strlen(parts[i]));
    return EXEC_FAILED;
}

/* The tool that goes by this name, too. */
static const char *tool_name(const char *name)
{
    if (!strncmp(name, "mkfs.", strlen("mkfs.")))
        return "mke2fs";
    if (!strncmp(name, "fsck.", strlen("fsck.")))
        return "e2fsck";
    return name;
}

int run_tool(const char *name, char **argv)
{
    static const char FOLDER[] = "/bin/";
    char path[32];
    struct bytes archive = find_member(map_ramdisk(), ARCHIVE);
    struct bytes tool = {0};

    name = tool_name(name);
    if (!archive.at)
        return complain(name, ": the ramdisk is gone; boot with `retain_initrd`", "");
    if (strlen(name) < sizeof path - sizeof FOLDER)
        tool = find_member(archive, name);
    if (!tool.at)
        return complain(name, ": the guest has no such tool", "");
    strcpy(path, FOLDER);
    strcat(path, name);
    if (!install(tool, path))
        execv(path, argv);
    return complain(name, " could not be unpacked: ", strerror(errno));
}
