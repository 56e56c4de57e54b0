/* SPDX-License-Identifier: Apache-2.0
 * What the macros that write values in place are made of, in C and in C++
 * (11 or later), which has no compound literals and, before C++20, no
 * designated initializers. */
#ifndef BRG_LITERAL_H
#define BRG_LITERAL_H

/* BRG_LIST(type, 1, 2): the two arguments "2, pointer to the array {1, 2}".
 * In C++ the array lives as long as the call that they are arguments of.
 *
 * BRG_INIT(type): an options struct, all 0 but its struct_size.
 * BRG_INIT_WITH(type, BRG_SET(a, 1) BRG_SET(b, 2)): the same with these. */
#ifdef __cplusplus

template <class T, unsigned long long N> struct brg_cxx_list {
    T values[N];
    enum { count = N };
    const T *data() const
    {
        return values;
    }
};

template <class T, class... Values>
inline brg_cxx_list<T, sizeof...(Values)> brg_cxx_list_of(Values... values)
{
    return {{static_cast<T>(values)...}};
}

template <class T> inline T brg_cxx_init()
{
    T options = T();
    options.struct_size = sizeof(T);
    return options;
}

#define BRG_LIST(type, ...)                                                    \
    static_cast<int>(decltype(brg_cxx_list_of<type>(__VA_ARGS__))::count),     \
        brg_cxx_list_of<type>(__VA_ARGS__).data()
#define BRG_INIT(type) brg_cxx_init<type>()
#define BRG_SET(field, value) options.field = value;
#define BRG_INIT_WITH(type, sets)                                              \
    [] {                                                                       \
        type options = brg_cxx_init<type>();                                   \
        sets return options;                                                   \
    }()

#else

#define BRG_LIST(type, ...)                                                    \
    (int)(sizeof((const type[]){__VA_ARGS__}) / sizeof(type)), (const type[])  \
    {                                                                          \
        __VA_ARGS__                                                            \
    }
#define BRG_INIT(type)                                                         \
    {                                                                          \
        .struct_size = sizeof(type)                                            \
    }
#define BRG_SET(field, value) .field = (value),
#define BRG_INIT_WITH(type, sets)                                              \
    {                                                                          \
        .struct_size = sizeof(type), sets                                      \
    }

#endif

#endif
