/* SPDX-License-Identifier: Apache-2.0
 * The test program's folder. */
#include "tests/support/temp_dir.h"

#include <dirent.h>
#include <limits.h>
#include <unistd.h>
#include <zlib.h>

#include "tests/support/brg_test.h"

static char folder[PATH_MAX];

static size_t walk(bool is_removing)
{
    DIR *dir = opendir(folder);
    if (!dir)
        return 0;
    size_t n = 0;
    for (struct dirent *entry; (entry = readdir(dir));) {
        if (entry->d_name[0] == '.')
            continue;
        n++;
        if (is_removing)
            unlink(temp_path(entry->d_name));
    }
    closedir(dir);
    return n;
}

static void remove_folder(void)
{
    (void)walk(true);
    rmdir(folder);
}

static void make_folder(void)
{
    const char *base = getenv("TMPDIR");
    if (!base) /* memory if there is some: no test waits for a disk */
        base = access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp";
    snprintf(folder, sizeof folder, "%s/brg_test_XXXXXX", base);
    if (!mkdtemp(folder)) {
        perror(folder);
        exit(1);
    }
    atexit(remove_folder);
}

const char *temp_path(const char *name)
{
    static char paths[8][PATH_MAX + 256];
    static unsigned turn;
    if (!folder[0])
        make_folder();
    char *path = paths[turn++ % 8];
    snprintf(path, sizeof paths[0], "%s/%s", folder, name);
    return path;
}

const char *temp_file(const char *name, const void *data, size_t nbytes)
{
    const char *path = temp_path(name);
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(data, 1, nbytes, file), nbytes);
    assert_int_equal(fclose(file), 0);
    return path;
}

const char *temp_file_gz(const char *name, const void *data, size_t nbytes)
{
    const char *path = temp_path(name);
    gzFile file = gzopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(gzwrite(file, data, (unsigned)nbytes), nbytes);
    assert_int_equal(gzclose(file), Z_OK);
    return path;
}

void *temp_read(const char *path, size_t *nbytes)
{
    FILE *file = fopen(path, "rb");
    assert_non_null(file);
    fseek(file, 0, SEEK_END);
    *nbytes = (size_t)ftell(file);
    rewind(file);
    char *data = malloc(*nbytes + 1);
    assert_non_null(data);
    assert_int_equal(fread(data, 1, *nbytes, file), *nbytes);
    fclose(file);
    return data;
}

size_t temp_count(void)
{
    return folder[0] ? walk(false) : 0;
}
