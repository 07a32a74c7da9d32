// Stepper for a process that calls C functions: Python opens this library with ctypes.
//
// Functions that can fail return 0, or the number that Refused has, and write the reason to `why`.
#include "step.h"

#define EXPORTED extern "C" __attribute__((visibility("default")))

namespace {

constexpr size_t ROOM = 1024;  // bytes of `why`, the ending zero among them

template <class Work>
int refusable(char* why, Work work) {
  std::string reason;
  int code = 2;
  try {
    work();
    return 0;
  } catch (const rwkv::Refused& refused) {
    reason = refused.what();
    code = refused.code;
  } catch (const std::exception& other) {
    reason = other.what();
  }
  const size_t length = std::min(reason.size(), ROOM - 1);
  std::memcpy(why, reason.data(), length);
  why[length] = 0;
  return code;
}

int32_t described(const rwkv::Port& port, uint64_t* bytes) {
  *bytes = port.bytes;
  return static_cast<int32_t>(port.type);
}

}  // namespace

// data: the program's model.ptd, or "". threads: 0 for the runtime's own choice.
EXPORTED int rwkv_open(const char* program, const char* data, uint32_t threads, rwkv::Stepper** opened, char* why) {
  return refusable(why, [&] { *opened = new rwkv::Stepper(program, data, threads); });
}

EXPORTED void rwkv_close(rwkv::Stepper* stepper) { delete stepper; }

EXPORTED uint64_t rwkv_threads() {
  rwkv::Complaints::listen();  // making the pool has much to say
  return rwkv::Stepper::threads();
}

// Loads a method; it lives as long as the program is open.
EXPORTED int rwkv_method(rwkv::Stepper* stepper, const char* name, rwkv::Method** method, char* why) {
  return refusable(why, [&] { *method = &stepper->method(name); });
}

// How many state tensors the method takes and gives.
EXPORTED uint64_t rwkv_states(const rwkv::Method* method) { return method->state.size(); }

// Size and element type, as ExecuTorch numbers it, of the token ids (0), the logits (1) or a state tensor (2 and on).
EXPORTED int32_t rwkv_port(const rwkv::Method* method, uint64_t index, uint64_t* bytes) {
  if (index == 0) return described(method->tokens, bytes);
  return described(index == 1 ? method->logits : method->state.at(index - 2), bytes);
}

EXPORTED int rwkv_step(rwkv::Stepper* stepper, rwkv::Method* method, const int64_t* ids, const void* const* before,
                       void* const* after, void* logits, char* why) {
  return refusable(why, [&] { stepper->step(*method, ids, before, after, logits); });
}
