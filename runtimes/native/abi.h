// The few entry points and structures of ONNX Runtime's C interface that the kernels use; not a copy of its headers.
//
// The function table is append-only: an entry keeps its index for good. Indices count from CreateStatus = 0.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ort {

constexpr uint32_t VERSION = 17;  // of the interface: ONNX Runtime 1.17, the first with ParallelFor

struct Status;
struct Value;
struct Shape;
struct Info;
struct Context;
struct Options;
struct Domain;
struct Table;

struct Base {
    const Table* (*get)(uint32_t version);
    const char* (*version)();
};

enum Type : int { FLOAT = 1, UINT8 = 2, INT8 = 3 };
enum Characteristic : int { REQUIRED = 0, OPTIONAL = 1 };

struct Op {  // version 17: later versions append
    uint32_t version;
    void* (*create)(const Op*, const Table*, const Info*);
    const char* (*name)(const Op*);
    const char* (*provider)(const Op*);
    Type (*input_type)(const Op*, size_t);
    size_t (*inputs)(const Op*);
    Type (*output_type)(const Op*, size_t);
    size_t (*outputs)(const Op*);
    void (*compute)(void*, Context*);
    void (*destroy)(void*);
    Characteristic (*input_kind)(const Op*, size_t);
    Characteristic (*output_kind)(const Op*, size_t);
    int (*input_memory)(const Op*, size_t);
    int (*variadic[4])(const Op*);
    Status* (*create_or_fail)(const Op*, const Table*, const Info*, void**);
    Status* (*compute_or_fail)(void*, Context*);
    Status* (*infer_shapes)(const Op*, void*);
    int (*first_version)(const Op*);
    int (*last_version)(const Op*);
};

template <size_t index, class... Arguments>
inline Status* call(const Table* table, Arguments... arguments) {
    auto entries = reinterpret_cast<Status* (*const*)(Arguments...)>(table);
    return entries[index](arguments...);
}

inline Status* failure(const Table* table, const char* message) { return call<0>(table, 1, message); }

struct Failure {  // thrown by the functions below, caught where ONNX Runtime called us
    Status* status;
};

inline void check(Status* status) {
    if (status) throw Failure{status};
}

inline Domain* domain(const Table* table, const char* name) {
    Domain* made = nullptr;
    check(call<26>(table, name, &made));
    return made;
}
inline void add(const Table* table, Domain* domain, const Op* op) { check(call<27>(table, domain, op)); }
inline void add(const Table* table, Options* options, Domain* domain) { check(call<28>(table, options, domain)); }

inline void* data(const Table* table, const Value* value) {
    void* found = nullptr;
    check(call<51>(table, const_cast<Value*>(value), &found));
    return found;
}

// Writes at most `room` dimensions; returns how many there are.
inline size_t dimensions(const Table* table, const Value* value, int64_t* dims, size_t room) {
    Shape* shape = nullptr;
    size_t rank = 0;
    check(call<65>(table, value, &shape));
    Status* status = call<61>(table, static_cast<const Shape*>(shape), &rank);
    if (!status && rank <= room) status = call<62>(table, static_cast<const Shape*>(shape), dims, rank);
    reinterpret_cast<void (*const*)(Shape*)>(table)[99](shape);
    check(status);
    return rank;
}

inline int64_t integer(const Table* table, const Info* info, const char* name) {
    int64_t value = 0;
    check(call<86>(table, info, name, &value));
    return value;
}

// The initializer behind an input, or null where it is not one.
inline const Value* constant(const Table* table, const Info* info, size_t index) {
    int is_constant = 0;
    const Value* value = nullptr;
    check(call<249>(table, info, index, &is_constant, &value));
    return is_constant ? value : nullptr;
}

inline size_t inputs(const Table* table, const Context* context) {
    size_t count = 0;
    check(call<88>(table, context, &count));
    return count;
}
inline const Value* input(const Table* table, const Context* context, size_t index) {
    const Value* value = nullptr;
    check(call<90>(table, context, index, &value));
    return value;
}
inline Value* output(const Table* table, Context* context, size_t index, const int64_t* dims, size_t rank) {
    Value* value = nullptr;
    check(call<91>(table, context, index, dims, rank, &value));
    return value;
}

// Calls fn(data, 0) to fn(data, total - 1) on the session's threads.
inline void parallel(const Table* table, const Context* context, void (*fn)(void*, size_t), size_t total, void* data) {
    check(call<274>(table, context, fn, total, size_t{0}, data));
}

}  // namespace ort
