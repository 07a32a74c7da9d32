// rwkv-step: steps an ExecuTorch program of ours. Here is the engine; what the command does is in agent/program.h.
#include "../../agent/program.h"
#include "../../agent/serve.h"
#include "step.h"

namespace {

using rwkv::Bytes;
using rwkv::Method;
using rwkv::Port;
using rwkv::Refused;
using rwkv::ScalarType;
using Half = executorch::aten::Half;

constexpr double HALF_FILL = -6.0e4;  // for -1e30, which float16 does not hold
constexpr const char* USAGE =
    R"(  --model FILE       the program, model.pte
  --data FILE        its weights, where they are separate; default: model.ptd beside it, if there
)";

class Program : public rwkv::Engine {
 public:
  explicit Program(const rwkv::Options& chosen) : stepper_(chosen.model, data_of(chosen), chosen.threads) {}

  std::vector<Bytes> initial() override {
    const std::vector<rwkv::EValue> fills = stepper_.constant("state_fills");
    const std::vector<Port>& state = decode().state;
    if (fills.size() != state.size()) throw Refused(2, "the program's state_fills do not fit its inputs");
    std::vector<Bytes> made;
    for (size_t i = 0; i < state.size(); ++i) made.push_back(filled(state[i], fills[i].toDouble()));
    return made;
  }

  size_t vocabulary() override { return decode().logits.elements(); }
  size_t threads() override { return rwkv::Stepper::threads(); }
  std::vector<std::string> delegates() override { return decode().delegates; }
  void prepare(size_t tokens) override { method(tokens); }

  void step(const int64_t* ids, size_t tokens, const void* const* before, void* const* after, float* logits) override {
    Method& chosen = method(tokens);
    if (chosen.logits.type == ScalarType::Float) {
      stepper_.step(chosen, ids, before, after, logits);
    } else if (chosen.logits.type == ScalarType::Half) {
      std::vector<Half> half(chosen.logits.elements());
      stepper_.step(chosen, ids, before, after, half.data());
      std::copy(half.begin(), half.end(), logits);
    } else {
      throw Refused(2, "the logits are neither float32 nor float16");
    }
  }

 private:
  static std::string data_of(const rwkv::Options& chosen) {
    if (!chosen.data.empty()) return chosen.data;
    const std::string beside = chosen.model.substr(0, chosen.model.rfind('.')) + ".ptd";
    return std::ifstream(beside).good() ? beside : "";
  }

  static Bytes filled(const Port& port, double fill) {
    Bytes bytes(port.bytes);
    if (port.type == ScalarType::Float) {
      std::fill_n(reinterpret_cast<float*>(bytes.data()), port.elements(), static_cast<float>(fill));
    } else if (port.type == ScalarType::Half) {
      const Half half(static_cast<float>(std::max(fill, HALF_FILL)));
      std::fill_n(reinterpret_cast<Half*>(bytes.data()), port.elements(), half);
    } else {
      throw Refused(2, "the program's state is neither float32 nor float16");
    }
    return bytes;
  }

  Method& decode() { return method(1); }
  Method& method(size_t tokens) {
    return stepper_.method(tokens == 1 ? "decode" : "prefill" + std::to_string(tokens));
  }

  rwkv::Stepper stepper_;
};

std::unique_ptr<rwkv::Engine> open(const rwkv::Options& chosen) { return std::make_unique<Program>(chosen); }

int serve(const rwkv::Options& chosen) {
  return rwkv::agent::serve({"pte:cpu-direct", chosen.emulated}, [&](const auto& folder, const auto& manifest) {
    rwkv::Options options = chosen;
    options.model = folder + "/" + manifest.step().file;
    return open(options);
  });
}

}  // namespace

int main(int count, char** words) { return rwkv::program({"rwkv-step", USAGE, true, open, serve}, count, words); }
