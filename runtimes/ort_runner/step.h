// One call of an ONNX artifact on ONNX Runtime's CPU kernels, its state in memory of the caller; it prints nothing.
//
// Names, shapes and fills are those of manifest.json. Needs libonnxruntime, and none of its headers.
#pragma once

#include "../agent/engine.h"
#include "../agent/manifest.h"
#include "library.h"

#include <thread>

namespace rwkv {

class Onnx : public Engine {
 public:
  // folder: where the graphs are that the manifest names. threads: 0 for as many as there are processors.
  Onnx(std::string folder, agent::Manifest manifest, unsigned threads)
      : folder_(std::move(folder)),
        manifest_(std::move(manifest)),
        threads_(threads != 0 ? threads : std::max(1U, std::thread::hardware_concurrency())) {
    for (const agent::StateTensor& tensor : manifest_.state) {
      if (tensor.dtype != "float32") throw Refused(2, tensor.name + " is " + tensor.dtype + ", expected float32");
    }
  }

  std::vector<Bytes> initial() override {
    std::vector<Bytes> made;
    for (const agent::StateTensor& tensor : manifest_.state) {
      const std::vector<float> filled(tensor.bytes / sizeof(float), static_cast<float>(tensor.fill));
      const auto* begin = reinterpret_cast<const char*>(filled.data());
      made.emplace_back(begin, begin + tensor.bytes);
    }
    return made;
  }

  size_t vocabulary() override { return static_cast<size_t>(manifest_.vocabulary); }
  size_t threads() override { return threads_; }
  std::vector<std::string> delegates() override { return {}; }
  void prepare(size_t tokens) override { loaded(graph(tokens)); }

  void step(const int64_t* ids, size_t tokens, const void* const* before, void* const* after, float* logits) override {
    for (size_t i = 0; i < tokens; ++i) {
      if (ids[i] < 0 || ids[i] >= manifest_.vocabulary) {
        throw Refused(2, "token " + std::to_string(ids[i]) + " is outside the vocabulary of " +
                             std::to_string(manifest_.vocabulary));
      }
    }
    const agent::Graph& chosen = graph(tokens);
    guarded(chosen, [&] { run(chosen, loaded(chosen), ids, tokens, before, after, logits); });
  }

 private:
  struct Loaded {
    ort::OwnedSession session;
    size_t ids, logits;  // axes, of which only the last is not 1
  };

  // The smallest graph that takes so many tokens.
  const agent::Graph& graph(size_t tokens) const {
    const agent::Graph* found = nullptr;
    std::string all;
    for (const agent::Graph& each : manifest_.graphs) {
      const auto size = static_cast<size_t>(each.tokens);
      const bool takes = size == tokens || (each.up_to && size > tokens);
      if (takes && (found == nullptr || each.tokens < found->tokens)) found = &each;
      all += (all.empty() ? "" : ", ") + std::string(each.up_to ? "up to " : "") + std::to_string(size);
    }
    if (found == nullptr) {
      throw Refused(2, "no graph takes " + std::to_string(tokens) + " tokens a call, there are graphs for " + all);
    }
    return *found;
  }

  // The session of the graph's file, which several may share.
  const Loaded& loaded(const agent::Graph& graph) {
    const auto known = loaded_.find(graph.file);
    if (known != loaded_.end()) return known->second;
    if (!graph.beyond.empty()) throw Refused(2, graph.file + " comes with " + graph.beyond + ", which is not for CPUs");
    Loaded made{};
    guarded(graph, [&] {
      made.session = ort::session(environment_.get(), folder_ + "/" + graph.file, threads_);
      made.ids = ort::axes(made.session.get(), graph.input, false);
      made.logits = ort::axes(made.session.get(), graph.output, true);
    });
    if (made.ids == 0 || made.logits == 0) {
      throw Refused(2, graph.file + " lacks " + (made.ids == 0 ? graph.input : graph.output));
    }
    return loaded_.emplace(graph.file, std::move(made)).first->second;
  }

  void run(const agent::Graph& graph, const Loaded& loaded, const int64_t* ids, size_t count, const void* const* before,
           void* const* after, float* logits) {
    std::vector<ort::OwnedValue> held;
    std::vector<const char*> inputs = {graph.input.c_str()}, outputs = {graph.output.c_str()};
    std::vector<const ort::Value*> given;
    std::vector<ort::Value*> taken;
    const auto tensor = [&](const void* data, const std::vector<int64_t>& shape, ort::Element element, size_t bytes) {
      for (const int64_t axis : shape) bytes *= static_cast<size_t>(axis);
      held.push_back(ort::tensor(memory_.get(), const_cast<void*>(data), bytes, shape, element));
      return held.back().get();
    };
    const auto row = [](size_t axes, int64_t last) {
      std::vector<int64_t> shape(axes, 1);
      shape.back() = last;
      return shape;
    };
    const std::vector<int32_t> narrow(ids, ids + count);
    const std::vector<int64_t> fed = row(loaded.ids, static_cast<int64_t>(count));
    given.push_back(graph.input_dtype == "int32" ? tensor(narrow.data(), fed, ort::INT32, sizeof narrow[0])
                                                 : tensor(ids, fed, ort::INT64, sizeof ids[0]));
    taken.push_back(tensor(logits, row(loaded.logits, manifest_.vocabulary), ort::FLOAT32, sizeof logits[0]));
    for (size_t i = 0; i < manifest_.state.size(); ++i) {
      const agent::StateTensor& state = manifest_.state[i];
      inputs.push_back(state.input.c_str());
      outputs.push_back(state.output.c_str());
      given.push_back(tensor(before[i], state.shape, ort::FLOAT32, sizeof(float)));
      taken.push_back(tensor(after[i], state.shape, ort::FLOAT32, sizeof(float)));
    }
    ort::run(loaded.session.get(), inputs, given, outputs, taken);
  }

  template <class Work>
  static void guarded(const agent::Graph& graph, Work work) {
    try {
      work();
    } catch (const ort::Failure& failure) {
      throw Refused(2, "ONNX Runtime refuses " + graph.file + ": " + ort::reason(failure));
    }
  }

  const std::string folder_;
  const agent::Manifest manifest_;
  const unsigned threads_;
  const ort::OwnedEnv environment_ = ort::environment();
  const ort::OwnedMemory memory_ = ort::cpu_memory();
  std::map<std::string, Loaded> loaded_;
};

}  // namespace rwkv
