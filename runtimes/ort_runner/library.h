// What a program that runs models needs of ONNX Runtime's C interface: each object freed with its owner; see abi.h.
#pragma once

#include "../native/abi.h"

#include <memory>
#include <string>
#include <vector>

extern "C" const ort::Base* OrtGetApiBase();

namespace ort {

struct Env;
struct Session;
struct Memory;
struct Allocator;
struct TypeInfo;
struct RunOptions;

enum Element : int { FLOAT32 = 1, INT32 = 6, INT64 = 7 };

constexpr int ERRORS_ONLY = 3;       // of the levels of the log
constexpr int DEVICE_ALLOCATOR = 0;  // memory that is allocated where it is asked for
constexpr int DEFAULT_MEMORY = 0;

inline const Table* table() {
  static const Table* const one = OrtGetApiBase()->get(VERSION);
  return one;
}

template <size_t release>
struct Release {
  template <class Object>
  void operator()(Object* object) const {
    reinterpret_cast<void (*const*)(Object*)>(table())[release](object);
  }
};

template <class Object, size_t release>
using Owned = std::unique_ptr<Object, Release<release>>;

using OwnedEnv = Owned<Env, 92>;
using OwnedMemory = Owned<Memory, 94>;
using OwnedSession = Owned<Session, 95>;
using OwnedValue = Owned<Value, 96>;
using OwnedTypeInfo = Owned<TypeInfo, 98>;
using OwnedOptions = Owned<Options, 100>;

// What ONNX Runtime said went wrong, in one line; frees the failure.
inline std::string reason(const Failure& failure) {
  const Owned<Status, 93> status(failure.status);
  std::string said = reinterpret_cast<const char* (*const*)(const Status*)>(table())[2](status.get());
  for (char& c : said) c = c == '\n' ? ' ' : c;
  return said;
}

inline OwnedEnv environment() {
  Env* made = nullptr;
  check(call<3>(table(), ERRORS_ONLY, "rwkv", &made));
  return OwnedEnv(made);
}

// threads: 0 for the runtime's own choice.
inline OwnedSession session(const Env* environment, const std::string& path, unsigned threads) {
  Options* options = nullptr;
  check(call<10>(table(), &options));
  const OwnedOptions held(options);
  check(call<24>(table(), options, static_cast<int>(threads)));
  Session* made = nullptr;
  check(call<7>(table(), environment, path.c_str(), static_cast<const Options*>(options), &made));
  return OwnedSession(made);
}

inline OwnedMemory cpu_memory() {
  Memory* made = nullptr;
  check(call<69>(table(), DEVICE_ALLOCATOR, DEFAULT_MEMORY, &made));
  return OwnedMemory(made);
}

// A tensor on memory of the caller's.
inline OwnedValue tensor(const Memory* memory, void* data, size_t bytes, const std::vector<int64_t>& shape,
                         Element element) {
  Value* made = nullptr;
  check(call<49>(table(), memory, data, bytes, shape.data(), shape.size(), static_cast<int>(element), &made));
  return OwnedValue(made);
}

// How many axes the input of that name has, or the output; 0 where there is none.
inline size_t axes(const Session* session, const std::string& wanted, bool output) {
  Allocator* allocator = nullptr;
  check(call<78>(table(), &allocator));
  size_t count = 0;
  check(output ? call<31>(table(), session, &count) : call<30>(table(), session, &count));
  for (size_t i = 0; i < count; ++i) {
    char* name = nullptr;
    check(output ? call<37>(table(), session, i, allocator, &name) : call<36>(table(), session, i, allocator, &name));
    const bool found = name == wanted;
    check(call<76>(table(), allocator, static_cast<void*>(name)));
    if (!found) continue;
    TypeInfo* type = nullptr;
    check(output ? call<34>(table(), session, i, &type) : call<33>(table(), session, i, &type));
    const OwnedTypeInfo held(type);
    const Shape* shape = nullptr;
    size_t rank = 0;
    check(call<55>(table(), static_cast<const TypeInfo*>(type), &shape));
    if (shape != nullptr) check(call<61>(table(), shape, &rank));
    return rank;
  }
  return 0;
}

inline void run(Session* session, const std::vector<const char*>& inputs, const std::vector<const Value*>& given,
                const std::vector<const char*>& outputs, std::vector<Value*>& taken) {
  check(call<9>(table(), session, static_cast<const RunOptions*>(nullptr), inputs.data(), given.data(), inputs.size(),
                outputs.data(), outputs.size(), taken.data()));
}

}  // namespace ort
