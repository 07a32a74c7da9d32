// What a runtime implements in C++ for a program that steps artifacts where there is no Python; it runs nothing.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

namespace rwkv {

// What was asked for cannot be had. code: 2 where the call or the program is wrong, 3 where this runner lacks a part.
struct Refused : std::runtime_error {
  Refused(int code, const std::string& message) : std::runtime_error(message), code(code) {}
  int code;
};

using Bytes = std::vector<char>;

// A loaded artifact, its state in memory of the caller. Not thread-safe. Everything here may throw Refused.
class Engine {
 public:
  virtual ~Engine() = default;

  // The state to start from: each tensor's elements, in the order of the artifact's `state` list.
  virtual std::vector<Bytes> initial() = 0;
  virtual size_t vocabulary() = 0;
  virtual size_t threads() = 0;

  // What takes parts of the step away from the runtime's own kernels.
  virtual std::vector<std::string> delegates() = 0;

  // Loads what takes `tokens` ids a call; refuses a number that nothing takes. Before the first `step` of that number.
  virtual void prepare(size_t tokens) = 0;

  // One call. ids: `tokens` of them; before, after: a pointer to each state tensor's elements, which do not overlap;
  // logits: `vocabulary` floats, of the last token. Refuses ids outside the vocabulary.
  virtual void step(const int64_t* ids, size_t tokens, const void* const* before, void* const* after,
                    float* logits) = 0;
};

}  // namespace rwkv
