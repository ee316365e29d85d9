// Reads an instance's attributes where CPython 3.11 keeps them as long as nobody asks for `__dict__`: in an array of values beside the
// object, whose names are the class's (PEP 412). Asking makes a dict for good, and every later `self.name` goes through that. Other
// versions are not read here: 3.13 keeps the values where they are all the same. The layout is that of the interpreter's own header.

#pragma once

#include <Python.h>

#if PY_VERSION_HEX >= 0x030B0000 && PY_VERSION_HEX < 0x030C0000 && defined(__has_include)
#if __has_include("internal/pycore_dict.h")
#define FTRAY_INLINE_VALUES 1
#define Py_BUILD_CORE 1  // the header asks for it; Python.h has been read and does not change
#include "internal/pycore_dict.h"
#undef Py_BUILD_CORE
#endif
#endif

namespace fti {

// Adds the attributes to `into`, in the order in which they were set: 1. They are not inline: 0, and nothing is added. -1: an exception.
inline int add_inline_values(PyObject *instance, PyObject *into, PyObject *dict_name) noexcept {
#ifdef FTRAY_INLINE_VALUES
    PyTypeObject *type = Py_TYPE(instance);
    if (!PyType_HasFeature(type, Py_TPFLAGS_MANAGED_DICT) || !PyType_HasFeature(type, Py_TPFLAGS_HEAPTYPE)) return 0;
    // What `__dict__` is must be nobody's property and nobody's `__getattribute__`.
    PyObject *described = _PyType_Lookup(type, dict_name);
    if (type->tp_getattro != PyObject_GenericGetAttr || described == nullptr || !Py_IS_TYPE(described, &PyGetSetDescr_Type)) return 0;
    const PyDictValues *held = reinterpret_cast<PyDictValues **>(instance)[-4];
    const PyDictKeysObject *keys = reinterpret_cast<PyHeapTypeObject *>(type)->ht_cached_keys;
    if (held == nullptr || keys == nullptr || keys->dk_kind != DICT_KEYS_SPLIT) return 0;
    const PyDictUnicodeEntry *entries = DK_UNICODE_ENTRIES(keys);
    const uint8_t *before = reinterpret_cast<const uint8_t *>(held);  // backwards: size of all this, how many there are, which
    for (int i = 0; i < before[-2]; i++) {
        const int at = before[-3 - i];
        if (PyDict_SetItem(into, entries[at].me_key, held->values[at]) < 0) return -1;
    }
    return 1;
#else
    (void)instance, (void)into, (void)dict_name;
    return 0;
#endif
}

}  // namespace fti
