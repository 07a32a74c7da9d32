// rwkv-step-ort: steps an ONNX artifact of ours with the engine of step.h; what the command does is in agent/program.h.
#include "../agent/program.h"
#include "../agent/serve.h"
#include "step.h"

namespace {

constexpr const char* USAGE =
    R"(  --model FOLDER     the artifact: manifest.json, its graphs and their weights
)";

std::unique_ptr<rwkv::Engine> open(const rwkv::Options& chosen) {
  try {
    const auto manifest = rwkv::agent::Manifest::read(chosen.model);
    if (!manifest.initial_state.empty() && chosen.state.empty()) {
      throw rwkv::Refused(3, "this runner does not read " + manifest.initial_state +
                                 ", with which the artifact starts: give its elements with --state");
    }
    return std::make_unique<rwkv::Onnx>(chosen.model, manifest, chosen.threads);
  } catch (const rwkv::agent::Trouble& trouble) {
    throw rwkv::Refused(2, trouble.what());
  }
}

int serve(const rwkv::Options& chosen) {
  return rwkv::agent::serve({"ort:cpu", chosen.emulated}, [&](const auto& folder, const auto& manifest) {
    return std::make_unique<rwkv::Onnx>(folder, manifest, chosen.threads);
  });
}

}  // namespace

int main(int count, char** words) { return rwkv::program({"rwkv-step-ort", USAGE, false, open, serve}, count, words); }
