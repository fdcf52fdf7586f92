/* Machine code of its own for each Python function, so that whoever unwinds machine stacks sees Python's functions too.
 *
 * CPython 3.12 has something like it, but makes that code at run time, where an unwinder that needs tables finds none.
 * Here it comes from a compiler, tables and all: 4,096 functions that do nothing but evaluate a frame, given out to
 * Python functions when they are called first, and calls are counted. Which is whose is written to a file at once, so
 * that it is there however the process ends. Only symbols are used, no headers of CPython, which may not be there.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

typedef struct object Object;
typedef Object *(*Evaluate)(void *thread, void *frame, int throwing);
typedef intptr_t Size;

extern Object *_PyEval_EvalFrameDefault(void *thread, void *frame, int throwing);
extern void *PyInterpreterState_Get(void);
extern void _PyInterpreterState_SetEvalFrameFunc(void *interpreter, Evaluate evaluate);
extern Object *PyObject_GetAttrString(Object *object, const char *name);
extern const char *PyUnicode_AsUTF8(Object *text);
extern long PyLong_AsLong(Object *number);
extern void PyErr_Clear(void);
extern void Py_DecRef(Object *object);

#define MAYBE extern __attribute__((weak))
/* From 3.12 on, and before. */
MAYBE Object *PyUnstable_InterpreterFrame_GetCode(void *frame);
MAYBE Size PyUnstable_Eval_RequestCodeExtraIndex(void (*free)(void *));
MAYBE int PyUnstable_Code_GetExtra(Object *code, Size index, void **extra);
MAYBE int PyUnstable_Code_SetExtra(Object *code, Size index, void *extra);
MAYBE Size _PyEval_RequestCodeExtraIndex(void (*free)(void *));
MAYBE int _PyCode_GetExtra(Object *code, Size index, void **extra);
MAYBE int _PyCode_SetExtra(Object *code, Size index, void *extra);

#define MANY 4096
/* Behind function, globals, builtins and locals, in 3.11. */
#define CODE_IN_FRAME 4

static FILE *names;
static uint64_t *calls;
static Size place;
/* The first is for all that come when the others are gone. */
static uintptr_t given = 1;

#define F(number)                                                                                                      \
    __attribute__((noinline)) static Object *python_##number(void *thread, void *frame, int throwing) {               \
        return _PyEval_EvalFrameDefault(thread, frame, throwing);                                                      \
    }
#define F16(n) F(n##0) F(n##1) F(n##2) F(n##3) F(n##4) F(n##5) F(n##6) F(n##7) \
    F(n##8) F(n##9) F(n##a) F(n##b) F(n##c) F(n##d) F(n##e) F(n##f)
#define F256(n) F16(n##0) F16(n##1) F16(n##2) F16(n##3) F16(n##4) F16(n##5) F16(n##6) F16(n##7) \
    F16(n##8) F16(n##9) F16(n##a) F16(n##b) F16(n##c) F16(n##d) F16(n##e) F16(n##f)
#define ALL F256(0) F256(1) F256(2) F256(3) F256(4) F256(5) F256(6) F256(7) \
    F256(8) F256(9) F256(a) F256(b) F256(c) F256(d) F256(e) F256(f)
ALL
#undef F
#define F(number) python_##number,
static const Evaluate functions[MANY] = {ALL};

static void write_name(Object *code, uintptr_t number) {
    Object *file = PyObject_GetAttrString(code, "co_filename");
    Object *name = PyObject_GetAttrString(code, "co_qualname");
    Object *line = PyObject_GetAttrString(code, "co_firstlineno");
    const char *path = file ? PyUnicode_AsUTF8(file) : NULL, *qualified = name ? PyUnicode_AsUTF8(name) : NULL;
    fprintf(names, "%03lx\t%ld\t%s\t%s\n", (unsigned long)number, line ? PyLong_AsLong(line) : 0, path ? path : "?",
            qualified ? qualified : "?");
    fflush(names);
    Py_DecRef(file);
    Py_DecRef(name);
    Py_DecRef(line);
    PyErr_Clear();
}

/* When an error is being thrown into it nothing is asked of Python, which would lose that. */
static uintptr_t number_of(void *frame, int throwing) {
    Object *code = PyUnstable_InterpreterFrame_GetCode ? PyUnstable_InterpreterFrame_GetCode(frame)
                                                       : ((Object **)frame)[CODE_IN_FRAME];
    void *extra = NULL;
    (PyUnstable_Code_GetExtra ? PyUnstable_Code_GetExtra : _PyCode_GetExtra)(code, place, &extra);
    uintptr_t number = (uintptr_t)extra;
    if (!number && !throwing && given < MANY) {
        number = given++;
        (PyUnstable_Code_SetExtra ? PyUnstable_Code_SetExtra : _PyCode_SetExtra)(code, place, (void *)number);
        write_name(code, number);
    }
    if (PyUnstable_InterpreterFrame_GetCode) Py_DecRef(code);
    return number;
}

static Object *evaluate(void *thread, void *frame, int throwing) {
    uintptr_t number = number_of(frame, throwing);
    calls[number]++;
    return functions[number](thread, frame, throwing);
}

/* From now on, in all threads. `counts` is a file of as many zeros as there are counters, which others read too. */
int install(const char *list, int counts) {
    names = fopen(list, "w");
    calls = mmap(NULL, MANY * sizeof *calls, PROT_READ | PROT_WRITE, MAP_SHARED, counts, 0);
    if (!names || calls == MAP_FAILED) return -1;
    place = (PyUnstable_Eval_RequestCodeExtraIndex ? PyUnstable_Eval_RequestCodeExtraIndex
                                                    : _PyEval_RequestCodeExtraIndex)(NULL);
    if (place < 0) return -1;
    _PyInterpreterState_SetEvalFrameFunc(PyInterpreterState_Get(), evaluate);
    return 0;
}
