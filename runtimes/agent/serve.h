// The requests of serve.py, answered by a C++ program around whatever Engine it opens; it knows no runtime.
//
//   int main() { return rwkv::agent::serve({"pte:cpu-direct"}, open); }  // program.h has it as --serve
//
// The states, their numbers, prompts fed by the fewest calls, the vocabulary's bounds and the clock are here. Tensors
// that hold those of many layers stay stacked: the other side takes them apart; and it writes the tuned initial state of
// an artifact that has one.
#pragma once

#include "engine.h"
#include "states.h"

#include <chrono>
#include <csignal>
#include <functional>
#include <memory>
#include <set>

#include <sys/utsname.h>
#include <unistd.h>

namespace rwkv::agent {

// What is served. place: "pte:cpu-direct"; emulated: the processor is not a real one, so that times prove nothing.
struct Offer {
  std::string place;
  bool emulated = false;
};

// Opens an artifact folder; the manifest outlives the engine.
using Opener = std::function<std::unique_ptr<Engine>(const std::string& folder, const Manifest&)>;

// Holds the artifact and the states that were handed out, by number.
class Server {
 public:
  Server(Offer offer, Opener opener) : offer_(std::move(offer)), opener_(std::move(opener)) {}

  // What one request gives; throws what the engine throws, Trouble, and Malformed for a request that cannot be meant.
  Frame answer(const Frame& asked) {
    const Value request(asked.header);
    if (const Value* dropped = request.find("drop")) {
      for (const Value& number : dropped->list()) states_.drop(number.integer());
    }
    const std::string name = request.at("ask").text();
    if (name == "open") return open(request.at("folder").text(), request.at("place").text());
    if (name == "close") return close();
    if (engine_ == nullptr) throw Trouble("WrongCall", "the agent has opened no artifact");
    if (name == "initial_state") return initial_state();
    if (name == "step") return prefill({request.at("token")}, states_.at(request.at("state").integer()));
    if (name == "prefill") return prefill(request.at("tokens").list(), states_.at(request.at("state").integer()));
    if (name == "get_state") return get_state(states_.at(request.at("state").integer()));
    if (name == "set_state") return set_state(asked.tensors);
    if (name == "describe") return describe();
    throw Trouble("WrongCall", "the agent has no request '" + name + "'");
  }

 private:
  using Clock = std::chrono::steady_clock;

  Frame open(const std::string& folder, const std::string& place) {
    close();
    if (place != offer_.place) throw Trouble("WrongCall", "this program is " + offer_.place + ", not " + place);
    manifest_ = Manifest::read(folder);
    for (const Graph& graph : manifest_.graphs) {
      if (!graph.beyond.empty()) {
        throw Trouble("WrongCall", offer_.place + " takes no graph with '" + graph.beyond + "', as " + graph.file + " has");
      }
    }
    engine_ = opener_(folder, manifest_);
    for (const Graph& graph : manifest_.graphs) prepare(static_cast<size_t>(graph.tokens));
    check();
    utsname machine{};
    uname(&machine);
    return {{{"machine", machine.machine}, {"system", machine.release}}, {}};
  }

  Frame close() {
    states_ = {};
    prepared_.clear();
    engine_ = nullptr;
    return {};
  }

  // The engine's sizes are the manifest's.
  void check() {
    const State initial = engine_->initial();
    bool fits = initial.size() == manifest_.state.size();
    for (size_t i = 0; fits && i < initial.size(); ++i) fits = initial[i].size() == manifest_.state[i].bytes;
    if (!fits) throw Trouble("BadArtifact", "the graph takes another state than the manifest says", "export again");
    if (engine_->vocabulary() != static_cast<uint64_t>(manifest_.vocabulary)) {
      throw Trouble("BadArtifact", "the graph has another vocabulary than the manifest says", "export again");
    }
  }

  void prepare(size_t tokens) {
    if (prepared_.insert(tokens).second) engine_->prepare(tokens);
  }

  Frame initial_state() {
    if (!manifest_.initial_state.empty()) {
      throw Trouble("WrongCall", "the tuned initial state is in " + manifest_.initial_state, "write it as a state");
    }
    return {{{"state", states_.keep(engine_->initial())}}, {}};
  }

  Frame prefill(const Value::List& given, const State& before) {
    if (given.empty()) throw Trouble("WrongCall", "prefill needs at least one token");
    std::vector<int64_t> ids;
    for (const Value& id : given) {
      if (id.integer() < 0 || id.integer() >= manifest_.vocabulary) {
        throw Trouble("WrongCall", "token " + std::to_string(id.integer()) + " is outside the vocabulary of " +
                                       std::to_string(manifest_.vocabulary));
      }
      ids.push_back(id.integer());
    }
    const auto vocabulary = static_cast<uint64_t>(manifest_.vocabulary);
    Tensor logits{"float32", {manifest_.vocabulary}, std::vector<char>(vocabulary * sizeof(float))};
    State now = states_.room(manifest_), next = states_.room(manifest_);
    double seconds = 0;
    for (size_t fed = 0; fed < ids.size();) {
      const size_t count = most(ids.size() - fed);
      prepare(count);
      seconds += call(&ids[fed], count, fed == 0 ? before : now, next, logits);
      fed += count;
      std::swap(now, next);
    }
    states_.spare(std::move(next));
    return {{{"state", states_.keep(std::move(now))}, {"seconds", seconds}}, {{"logits", std::move(logits)}}};
  }

  double call(const int64_t* ids, size_t count, const State& before, State& after, Tensor& logits) {
    std::vector<const void*> in;
    std::vector<void*> out;
    for (const auto& bytes : before) in.push_back(bytes.data());
    for (auto& bytes : after) out.push_back(bytes.data());
    const auto start = Clock::now();
    engine_->step(ids, count, in.data(), out.data(), reinterpret_cast<float*>(logits.bytes.data()));
    return std::chrono::duration<double>(Clock::now() - start).count();
  }

  // How many of `left` tokens the next call takes: as many as any graph does.
  size_t most(size_t left) const {
    size_t found = 1;  // the manifest has a graph for one token
    for (const Graph& graph : manifest_.graphs) {
      const auto tokens = static_cast<size_t>(graph.tokens);
      if (tokens <= left || graph.up_to) found = std::max(found, std::min(tokens, left));
    }
    return found;
  }

  Frame get_state(const State& held) {
    Frame made;
    for (size_t i = 0; i < held.size(); ++i) {
      const StateTensor& spec = manifest_.state[i];
      made.tensors[spec.name] = {spec.dtype, spec.shape, held[i]};
    }
    return made;
  }

  Frame set_state(const Tensors& given) {
    State made = states_.room(manifest_);
    for (size_t i = 0; i < made.size(); ++i) {
      const StateTensor& spec = manifest_.state[i];
      const auto found = given.find(spec.name);
      if (found == given.end() || given.size() != made.size()) {
        throw Trouble("WrongCall", "state tensors do not match the artifact's: " + spec.name);
      }
      if (found->second.dtype != spec.dtype || found->second.shape != spec.shape) {
        throw Trouble("WrongCall", spec.name + " has another type or shape than the artifact's");
      }
      made[i] = found->second.bytes;
    }
    return {{{"state", states_.keep(std::move(made))}}, {}};
  }

  Frame describe() {
    Value::Object nodes;
    for (const std::string& name : engine_->delegates()) {
      const auto found = nodes.find(name);
      nodes[name] = int64_t{1} + (found == nodes.end() ? 0 : found->second.integer());
    }
    const char* evidence = offer_.emulated ? "emulated" : "run";
    const Value::Object all = {
        {"requested", offer_.place}, {"observed", offer_.place}, {"nodes", nodes}, {"evidence", evidence}};
    return {{{"placement", all}}, {}};
  }

  const Offer offer_;
  const Opener opener_;
  Manifest manifest_{};
  std::unique_ptr<Engine> engine_;
  std::set<size_t> prepared_;  // numbers of tokens
  States states_;
};

inline Frame refusal(const std::string& kind, const std::string& message, const std::string& hint = "") {
  const Value advice = hint.empty() ? Value() : Value(hint);
  return {{{"error", Value::Object{{"kind", kind}, {"message", message}, {"hint", advice}}}}, {}};
}

// Answers on stdin and stdout until nobody asks any more; an exception is an answer too. Returns the exit status: 0, or 2
// where what came is no frame. Whatever a runtime prints on stdout goes to stderr.
inline int serve(const Offer& offer, const Opener& opener) {
  std::signal(SIGPIPE, SIG_IGN);
  std::FILE* const requests = stdin;
  std::FILE* const replies = fdopen(dup(STDOUT_FILENO), "wb");
  dup2(STDERR_FILENO, STDOUT_FILENO);
  Server server(offer, opener);
  try {
    while (true) {
      const Frame asked = read(requests);
      Frame made;
      try {
        made = server.answer(asked);
      } catch (const Trouble& error) {
        made = refusal(error.kind, error.what(), error.hint);
      } catch (const Refused& error) {
        const char* kind = error.code == 2 ? "BadArtifact" : error.code == 3 ? "Missing" : "CheckFailed";
        made = refusal(kind, error.what());
      } catch (const std::exception& error) {
        made = refusal("", error.what());
      }
      write(replies, made);
    }
  } catch (const Ended&) {
    return 0;
  } catch (const Malformed& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 2;
  }
}

}  // namespace rwkv::agent
