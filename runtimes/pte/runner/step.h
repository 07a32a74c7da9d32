// One call of an RWKV program on ExecuTorch's runtime, its state in memory of the caller; it prints nothing.
//
// A method takes token ids, then the state tensors; it gives logits, then the new state in the same order. Needs the
// headers and libraries that the executorch wheel carries, and nothing else.
#pragma once

#include "../../agent/engine.h"

#include <executorch/extension/module/module.h>
#include <executorch/extension/tensor/tensor_ptr_maker.h>
#include <executorch/runtime/backend/backend_options_map.h>
#include <executorch/runtime/backend/interface.h>
#include <executorch/runtime/backend/options.h>
#include <executorch/runtime/platform/platform.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <map>
#include <mutex>
#include <string>
#include <vector>

// The wheel has no threadpool.h; these are its symbols in libexecutorch_threadpool.so.
namespace executorch::extension::threadpool {
class ThreadPool {
 public:
  size_t get_thread_count() const;
  bool _unsafe_reset_threadpool(uint32_t threads);
};
ThreadPool* get_threadpool();
}  // namespace executorch::extension::threadpool

namespace rwkv {

using executorch::aten::ScalarType;
using executorch::aten::Tensor;
using executorch::runtime::Error;
using executorch::runtime::EValue;

// Keeps the runtime's last complaint instead of printing it.
class Complaints {
 public:
  static void listen() {
    using executorch::runtime::PalImpl;
    static const bool once = executorch::runtime::register_pal(PalImpl::create(hear, __FILE__));
    (void)once;
  }
  // ": what the runtime said last", or nothing; forgets it.
  static std::string take() {
    const std::lock_guard<std::mutex> lock(mutex());
    std::string said;
    std::swap(said, last());
    return said.empty() ? said : ": " + said;
  }

 private:
  static void hear(et_timestamp_t, et_pal_log_level_t level, const char*, const char*, size_t, const char* text,
                   size_t length) {
    if (level != et_pal_log_level_t::kError && level != et_pal_log_level_t::kFatal) return;
    const std::lock_guard<std::mutex> lock(mutex());
    if (last().empty()) last().assign(text, length);  // the first is the cause, the rest its consequences
  }
  static std::mutex& mutex() {
    static std::mutex one;
    return one;
  }
  static std::string& last() {
    static std::string text;
    return text;
  }
};

// A tensor that a method takes or gives.
struct Port {
  ScalarType type;
  std::vector<int32_t> shape;
  size_t bytes;

  size_t elements() const {
    size_t all = 1;
    for (const int32_t size : shape) all *= static_cast<size_t>(size);
    return all;
  }
};

// A loaded method. Programs that hold their state themselves have no state ports.
struct Method {
  Port tokens;
  Port logits;
  std::vector<Port> state;
  std::vector<std::string> delegates;
  executorch::runtime::Method* run = nullptr;
  std::vector<Tensor> inputs, outputs;  // the runtime's own, whose data is set at each call
  std::vector<int32_t> narrow;          // token ids, where the method takes int32
};

// The loaded program. Not thread-safe. Threads belong to the process: all Steppers alive share one number of them.
class Stepper {
 public:
  // Reads the program's table, no method yet. data: its model.ptd, or "". threads: 0 for the runtime's own choice.
  Stepper(const std::string& program, const std::string& data, unsigned threads)
      : claim_(threads),
        has_data_(!data.empty()),
        module_(readable(program), data_files(data), Opened::LoadMode::Mmap) {
    if (module_.load() != Error::Ok) throw Refused(2, program + " is not an ExecuTorch program" + Complaints::take());
    if (xnnpack_.set_option("weight_cache_enabled", true) != Error::Ok ||
        options_.set_options("XnnpackBackend", xnnpack_.view()) != Error::Ok) {
      throw Refused(3, "XNNPACK's options cannot be set");
    }
  }
  Stepper(const Stepper&) = delete;
  Stepper& operator=(const Stepper&) = delete;

  static size_t threads() { return executorch::extension::threadpool::get_threadpool()->get_thread_count(); }

  // All methods of the program, constant ones too, in order of their names.
  std::vector<std::string> methods() {
    const auto names = module_.method_names();
    if (!names.ok()) throw Refused(2, "the program's methods cannot be read" + Complaints::take());
    std::vector<std::string> sorted(names->begin(), names->end());
    std::sort(sorted.begin(), sorted.end());
    return sorted;
  }

  // What a constant method of the program says.
  std::vector<EValue> constant(const std::string& name) {
    known(name);
    auto said = module_.execute(name);
    if (!said.ok()) throw Refused(2, "the constant " + name + " cannot be read" + Complaints::take());
    return std::move(*said);
  }

  // The method, loaded at its first call, which packs weights for this processor and may take seconds.
  Method& method(const std::string& name) {
    const auto found = loaded_.find(name);
    return found != loaded_.end() ? found->second : loaded_.emplace(name, load(name)).first->second;
  }

  // One call. ids: as many as the method takes; state_in, state_out: a pointer to each tensor's elements in the ports'
  // types, out not overlapping in; logits: of the last token. Throws Refused, also for ids outside the vocabulary.
  void step(Method& method, const int64_t* ids, const void* const* state_in, void* const* state_out, void* logits) {
    feed(method, ids, state_in);
    place(method, 0, logits);
    for (size_t i = 0; i < method.state.size(); ++i) place(method, i + 1, state_out[i]);
    if (method.run->execute() != Error::Ok) throw Refused(2, "the program failed" + Complaints::take());
    fetch(method, 0, method.logits.bytes, logits);
    for (size_t i = 0; i < method.state.size(); ++i) fetch(method, i + 1, method.state[i].bytes, state_out[i]);
  }

 private:
  struct Opened : executorch::extension::Module {
    using Module::Module;
    executorch::runtime::Method* loaded(const std::string& name) { return methods_.at(name).method.get(); }
  };

  // Delegates keep a pointer to the pool from their loading on, so that it must not be replaced under them.
  class Claim {
   public:
    explicit Claim(unsigned wanted) {
      Complaints::listen();
      if (wanted != 0 && wanted != threads()) resize(wanted);
      ++alive();
    }
    ~Claim() { --alive(); }
    Claim(const Claim&) = delete;
    Claim& operator=(const Claim&) = delete;

   private:
    static std::atomic<int>& alive() {
      static std::atomic<int> count{0};
      return count;
    }
    static void resize(unsigned wanted) {
      if (alive() > 0) {
        throw Refused(2, "this process runs a program on " + std::to_string(threads()) +
                             " threads, close it before asking for " + std::to_string(wanted));
      }
      if (!executorch::extension::threadpool::get_threadpool()->_unsafe_reset_threadpool(wanted)) {
        throw Refused(3, "this machine refuses " + std::to_string(wanted) + " threads");
      }
    }
  };

  static std::string readable(const std::string& path) {
    if (!std::ifstream(path, std::ios::binary).good()) throw Refused(2, "cannot read " + path);
    return path;
  }

  static std::vector<std::string> data_files(const std::string& path) {
    return path.empty() ? std::vector<std::string>{} : std::vector<std::string>{readable(path)};
  }

  void known(const std::string& name) {
    std::string all;
    for (const auto& other : methods()) {
      if (other == name) return;
      all += (all.empty() ? "" : ", ") + other;
    }
    throw Refused(2, "the program has no method " + name + ", it has " + all);
  }

  Method load(const std::string& name) {
    known(name);
    const auto meta = module_.method_meta(name);
    if (!meta.ok()) throw Refused(2, "method " + name + " cannot be read" + Complaints::take());
    Method method = described(*meta, name);
    for (const auto& delegate : method.delegates) {
      if (executorch::runtime::get_backend_class(delegate.c_str()) == nullptr) {
        throw Refused(3, "method " + name + " needs the delegate " + delegate + ", which this runner lacks");
      }
    }
    if (const Error error = module_.load_method(name, nullptr, nullptr, &options_); error != Error::Ok) {
      refuse(name, error);
    }
    method.run = module_.loaded(name);
    hold(method);
    return method;
  }

  [[noreturn]] void refuse(const std::string& name, Error error) const {
    const std::string why = Complaints::take();
    if (!has_data_ && why.find("external") != std::string::npos) {
      throw Refused(2, "method " + name + " has its weights in a file of their own, model.ptd, which was not given");
    }
    throw Refused(error == Error::OperatorMissing ? 3 : 2, "method " + name + " cannot be loaded" + why);
  }

  static Method described(const executorch::runtime::MethodMeta& meta, const std::string& name) {
    if (meta.num_inputs() == 0 || meta.num_inputs() != meta.num_outputs()) {
      throw Refused(2, "method " + name + " is no step: it takes " + std::to_string(meta.num_inputs()) +
                           " tensors and gives " + std::to_string(meta.num_outputs()));
    }
    Method method;
    method.tokens = port(meta.input_tensor_meta(0), name);
    method.logits = port(meta.output_tensor_meta(0), name);
    if (method.tokens.type != ScalarType::Long && method.tokens.type != ScalarType::Int) {
      throw Refused(2, "method " + name + " takes token ids that are neither int64 nor int32");
    }
    for (size_t i = 1; i < meta.num_inputs(); ++i) {
      const Port in = port(meta.input_tensor_meta(i), name);
      Port out = port(meta.output_tensor_meta(i), name);
      if (in.bytes != out.bytes || in.type != out.type) {
        throw Refused(2, "method " + name + " gives another state than it takes");
      }
      method.state.push_back(std::move(out));
    }
    for (size_t i = 0; i < meta.num_backends(); ++i) method.delegates.emplace_back(*meta.get_backend_name(i));
    if (method.tokens.type == ScalarType::Int) method.narrow.resize(method.tokens.elements());
    return method;
  }

  static Port port(const executorch::runtime::Result<executorch::runtime::TensorInfo>& info, const std::string& name) {
    if (!info.ok()) throw Refused(2, "method " + name + " takes or gives something that is no tensor");
    const auto sizes = info->sizes();
    return {info->scalar_type(), {sizes.begin(), sizes.end()}, info->nbytes()};
  }

  // The method's own tensors. Inputs are set once to zeros, which the runtime insists on; from then on `step` points
  // inputs and outputs to the caller's memory, planned in the program or not, and nothing is copied.
  static void hold(Method& method) {
    for (size_t i = 0; i <= method.state.size(); ++i) {
      const Port& port = i == 0 ? method.tokens : method.state[i - 1];
      std::vector<char> zeros(port.bytes);
      const auto tensor = executorch::extension::from_blob(zeros.data(), port.shape, port.type);
      if (method.run->set_input(EValue(*tensor), i) != Error::Ok) {
        throw Refused(2, "input " + std::to_string(i) + " is refused" + Complaints::take());
      }
      method.inputs.push_back(input(*method.run, i));
      method.outputs.push_back(method.run->get_output(i).toTensor());
    }
  }

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wdeprecated-declarations"  // there is no other way to an input's tensor
  static Tensor input(executorch::runtime::Method& run, size_t index) { return run.get_input(index).toTensor(); }
#pragma GCC diagnostic pop

  static void feed(Method& method, const int64_t* ids, const void* const* state) {
    const size_t vocabulary = method.logits.elements();
    for (size_t i = 0; i < method.tokens.elements(); ++i) {
      if (ids[i] < 0 || static_cast<uint64_t>(ids[i]) >= vocabulary) {
        throw Refused(2, "token " + std::to_string(ids[i]) + " is outside the vocabulary of " +
                             std::to_string(vocabulary));
      }
      if (!method.narrow.empty()) method.narrow[i] = static_cast<int32_t>(ids[i]);
    }
    point(method.inputs[0], method.narrow.empty() ? static_cast<const void*>(ids) : method.narrow.data());
    for (size_t i = 0; i < method.state.size(); ++i) point(method.inputs[i + 1], state[i]);
  }

  static void point(const Tensor& tensor, const void* data) {
    tensor.unsafeGetTensorImpl()->set_data(const_cast<void*>(data));
  }

  // An output that is an input handed through stays where it is, for `fetch` to copy.
  static void place(Method& method, size_t index, void* data) {
    const Tensor& output = method.outputs[index];
    for (const Tensor& input : method.inputs) {
      if (input.unsafeGetTensorImpl() == output.unsafeGetTensorImpl()) return;
    }
    point(output, data);
  }

  // Copies an output that is not where it was placed: one that is an input, another output, or a view of either.
  static void fetch(Method& method, size_t index, size_t bytes, void* data) {
    const void* found = method.outputs[index].const_data_ptr();
    if (found != data) std::memcpy(data, found, bytes);
  }

  Claim claim_;
  const bool has_data_;
  executorch::runtime::BackendOptions<1> xnnpack_;  // a weight is packed once for all methods that have it
  executorch::runtime::LoadBackendOptionsMap options_;
  Opened module_;
  std::map<std::string, Method> loaded_;
};

}  // namespace rwkv
