/*
 * The Python behind the library: the host's own if it runs one of the same version, else the recorded one, started
 * here. Nothing of Python is linked: what is called is looked up in the libpython that is there, so that the library
 * loads wherever the host's loader looks for libraries. recorded.h comes from the build.
 */
#define _GNU_SOURCE
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "front.h"
#include "recorded.h"

#include <dlfcn.h>
#include <limits.h>
#include <link.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#define FUNCTIONS(X)                                                                                                \
    X(Py_IsInitialized)                                                                                             \
    X(Py_InitializeFromConfig)                                                                                      \
    X(Py_PreInitialize)                                                                                             \
    X(PyPreConfig_InitIsolatedConfig)                                                                               \
    X(PyConfig_InitIsolatedConfig)                                                                                  \
    X(PyConfig_SetBytesString)                                                                                      \
    X(PyConfig_Clear)                                                                                               \
    X(PyStatus_Exception)                                                                                           \
    X(PyEval_SaveThread)                                                                                            \
    X(PyGILState_Ensure)                                                                                            \
    X(PyGILState_Release)                                                                                           \
    X(PyDict_New)                                                                                                   \
    X(PyDict_GetItemString)                                                                                         \
    X(PyDict_SetItemString)                                                                                         \
    X(PyEval_GetBuiltins)                                                                                           \
    X(PyErr_Clear)                                                                                                  \
    X(PyUnicode_DecodeFSDefault)                                                                                    \
    X(PyLong_FromLong)                                                                                              \
    X(PyUnicode_AsUTF8)                                                                                             \
    X(PyRun_StringFlags)                                                                                            \
    X(Py_DecRef)

#define MEMBER(name) __typeof__(name) *name;
static struct { FUNCTIONS(MEMBER) } py;
#undef MEMBER

/* Imports what the entries need and binds them; `error` stays "" if that works. In a Python of the library's own, what
 * is printed meanwhile, by a broken .pth file for one, is kept for the log. A host's Python may lack the packages: then
 * those of the recorded environment serve, behind its own. */
static const char bootstrap[] =
    "error = ''\n"
    "try:\n"
    "    import sys\n"
    "    if (sys.version_info[:2], sys.abiflags) != recorded_version:\n"
    "        raise ImportError('this is Python %d.%d%s' % (*sys.version_info[:2], sys.abiflags))\n"
    "    if owns_python:\n"
    "        import io, site\n"
    "        sys.stdout = sys.stderr = io.StringIO()\n"
    "        site.main()\n"
    "    import importlib.util\n"
    "    try:\n"
    "        import _cffi_backend, flashcupy.capi.entries\n"
    "    except ModuleNotFoundError:\n"
    "        sys.path.extend(path for path in recorded_path if path not in sys.path)\n"
    "        import _cffi_backend, flashcupy.capi.entries\n"
    "    spec = importlib.util.spec_from_file_location('_flashcupy_entries', entries_path)\n"
    "    flashcupy.capi.entries.bind(importlib.util.module_from_spec(spec).ffi)\n"
    "except BaseException as exception:\n"
    "    error = '%s: %s' % (type(exception).__name__, exception)\n";

/* Where this library lies, found out when it is loaded: a relative path means something else once the host has changed
 * its folder. */
static char own_path[PATH_MAX];

__attribute__((constructor)) static void find_own_path(void) {
    Dl_info own;
    if (!dladdr(bootstrap, &own) || !realpath(own.dli_fname, own_path)) own_path[0] = 0;
}

static flashcupy_status fail(flashcupy_reply *reply, const char *format, ...) __attribute__((format(printf, 2, 3)));

static flashcupy_status fail(flashcupy_reply *reply, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(reply->text, reply->capacity, format, arguments);
    va_end(arguments);
    return FLASHCUPY_PYTHON;
}

static flashcupy_status look_up(void *library, const char *where, flashcupy_reply *reply) {
#define LOOK_UP(name)                                                                                               \
    if (!(py.name = (__typeof__(py.name))dlsym(library, #name)))                                                    \
        return fail(reply, "%s has no %s, expected Python " RECORDED_VERSION, where, #name);
    FUNCTIONS(LOOK_UP)
#undef LOOK_UP
    return FLASHCUPY_OK;
}

/* Remember the path of a libpython that is loaded: libpython3.11.so.1.0, and not a library of a similar name. */
static int find_libpython(struct dl_phdr_info *info, size_t size, void *found) {
    const char *base = strrchr(info->dlpi_name, '/');
    (void)size;
    base = base ? base + 1 : info->dlpi_name;
    if (strncmp(base, "libpython", 9) || base[9] < '2' || base[9] > '9' || base[10] != '.' || base[11] < '0' ||
        base[11] > '9' || !strstr(base, ".so"))
        return 0;
    snprintf(found, PATH_MAX, "%s", info->dlpi_name);
    return 1;
}

/* The libpython that is loaded, or the program itself if it carries Python; NULL without either. Makes its symbols
 * visible to extension modules, which do not name it among their needs. */
static void *loaded_python(char *path) {
    path[0] = 0;
    if (dl_iterate_phdr(find_libpython, path)) return dlopen(path, RTLD_NOLOAD | RTLD_NOW | RTLD_GLOBAL);
    strcpy(path, "the host program");
    return dlsym(RTLD_DEFAULT, "Py_IsInitialized") ? dlopen(NULL, RTLD_NOW) : NULL;
}

static flashcupy_status require_version(void *library, const char *where, flashcupy_reply *reply) {
    const char *(*get_version)(void) = (const char *(*)(void))dlsym(library, "Py_GetVersion");
    const char *version = get_version ? get_version() : "?";
    size_t n = strlen(RECORDED_VERSION);
    if (!strncmp(version, RECORDED_VERSION, n) && (version[n] == '.' || version[n] == '+')) return FLASHCUPY_OK;
    return fail(reply, "the process has Python %.*s (%s), expected Python " RECORDED_VERSION
                ", which the library is bound to", (int)strcspn(version, " "), version, where);
}

static flashcupy_status start(flashcupy_reply *reply) {
    PyPreConfig before;
    PyConfig config;
    PyStatus status;
    py.PyPreConfig_InitIsolatedConfig(&before);
    before.utf8_mode = 1; /* whatever the host's locale is, which is left alone */
    status = py.Py_PreInitialize(&before);
    if (!py.PyStatus_Exception(status)) {
        py.PyConfig_InitIsolatedConfig(&config);
        config.install_signal_handlers = 0;
        config.site_import = 0; /* done by the bootstrap */
        /* A virtual environment is found by the path of its python. */
        status = py.PyConfig_SetBytesString(&config, &config.program_name, RECORDED_PYTHON);
        if (!py.PyStatus_Exception(status)) status = py.Py_InitializeFromConfig(&config);
        py.PyConfig_Clear(&config);
    }
    if (py.PyStatus_Exception(status))
        return fail(reply, "Python (" RECORDED_PYTHON ") does not start: %s",
                    status.err_msg ? status.err_msg : "it wants to exit");
    py.PyEval_SaveThread();
    return FLASHCUPY_OK;
}

/* Run the bootstrap, with the GIL held. */
static flashcupy_status import_packages(const char *entries_path, int32_t owned, flashcupy_reply *reply) {
    flashcupy_status status = FLASHCUPY_OK;
    PyObject *names = py.PyDict_New(), *path = py.PyUnicode_DecodeFSDefault(entries_path), *done = NULL, *error;
    PyObject *owns_python = py.PyLong_FromLong(owned);
    const char *text = NULL;
    if (names && path && owns_python && !py.PyDict_SetItemString(names, "__builtins__", py.PyEval_GetBuiltins()) &&
        !py.PyDict_SetItemString(names, "entries_path", path) &&
        !py.PyDict_SetItemString(names, "owns_python", owns_python))
        done = py.PyRun_StringFlags(RECORDED_NAMES, Py_file_input, names, names, NULL);
    if (done) {
        py.Py_DecRef(done);
        done = py.PyRun_StringFlags(bootstrap, Py_file_input, names, names, NULL);
    }
    if (done && (error = py.PyDict_GetItemString(names, "error"))) text = py.PyUnicode_AsUTF8(error);
    if (!text || *text)
        status = fail(reply, "%s: the library was built for " RECORDED_PYTHON " with flashcupy and cffi",
                      text ? text : "Python cannot run the library's start");
    py.PyErr_Clear();
    if (done) py.Py_DecRef(done);
    if (owns_python) py.Py_DecRef(owns_python);
    if (path) py.Py_DecRef(path);
    if (names) py.Py_DecRef(names);
    return status;
}

/* The entries lie in the folder flashcupy/ beside this library. */
static flashcupy_status find_entries(char *path, flashcupy_reply *reply) {
    char *slash;
    size_t room;
    memcpy(path, own_path, PATH_MAX);
    if (!(slash = strrchr(path, '/'))) return fail(reply, "the library cannot find out where it lies");
    room = (size_t)(path + PATH_MAX - slash);
    if ((size_t)snprintf(slash, room, "/flashcupy/%s", RECORDED_ENTRIES) >= room)
        return fail(reply, "the path of the library is too long");
    return FLASHCUPY_OK;
}

/* Once Python has imported them. */
static flashcupy_status load_entries(entries *to, const char *path, flashcupy_reply *reply) {
    void *library = dlopen(path, RTLD_NOW | RTLD_NOLOAD);
    if (!library) return fail(reply, "%s is imported, and not loaded", path);
#define LOOK_UP(name)                                                                                               \
    if (!(to->name = (__typeof__(to->name))dlsym(library, "flashcupy_py_" #name)))                                  \
        return fail(reply, "%s lacks %s: build the library anew", path, "flashcupy_py_" #name);
    FLASHCUPY_ENTRIES(LOOK_UP)
#undef LOOK_UP
    return FLASHCUPY_OK;
}

flashcupy_status flashcupy_start_python(entries *to, flashcupy_reply *reply, int32_t *owned) {
    char path[PATH_MAX], entries_path[PATH_MAX];
    void *library = loaded_python(path);
    flashcupy_status status;
    PyGILState_STATE gil;
    if ((status = find_entries(entries_path, reply))) return status;
    if (!library) {
        snprintf(path, sizeof path, "%s", RECORDED_LIBPYTHON);
        /* Global, because extension modules do not name it among their needs. */
        if (!(library = dlopen(path, RTLD_NOW | RTLD_GLOBAL)))
            return fail(reply, "libpython cannot be loaded: %s", dlerror());
    }
    if ((status = require_version(library, path, reply)) || (status = look_up(library, path, reply))) return status;
    *owned = !py.Py_IsInitialized();
    if (*owned && (status = start(reply))) return status;
    gil = py.PyGILState_Ensure();
    status = import_packages(entries_path, *owned, reply);
    py.PyGILState_Release(gil);
    return status ? status : load_entries(to, entries_path, reply);
}
