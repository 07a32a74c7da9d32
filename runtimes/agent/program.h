// A command that steps an artifact, state carried, and prints what came out and how long it took: all but the engine.
//
// Exit status: 0 done, 1 the logits are not finite, 2 the call is wrong, 3 this machine or runner lacks something.
#pragma once

#include "record.h"

#include <chrono>
#include <cmath>
#include <functional>
#include <iterator>
#include <map>
#include <memory>

namespace rwkv {

using Clock = std::chrono::steady_clock;

constexpr const char* COMMON = R"(
  --tokens IDS|FILE  token ids to feed, separated by commas or blanks; default: 0
  --chunk N          feed N ids a call while as many are left
  --bench N          then N more tokens, each the likeliest after the last
  --state FILE       initial state: the tensors' elements, little endian, in the artifact's order; default: its own
  --state-out FILE   where the last state goes, in the same form
  --logits FILE.npy  where the logits go, float32, a row for each call
  --threads N        default: the runtime's choice
  --emulated         the processor is emulated: report no times, no memory, no processor
  --serve            answer a session on another machine over stdin and stdout, which names the artifact
)";

struct Options {
  std::string model, data, tokens = "0", state, state_out, logits;
  unsigned chunk = 0, bench = 0, threads = 0;
  bool emulated = false, serve = false, help = false;
};

// One command. usage: what its --model is, and its other own options; data: whether --data is one of them; serve: what
// --serve does instead of stepping, with what it was given of the other options; its result is the exit status.
struct Command {
  const char* name;
  const char* usage;
  bool data;
  std::function<std::unique_ptr<Engine>(const Options&)> open;
  std::function<int(const Options&)> serve;
};

inline unsigned number(const std::string& name, const std::string& text) {
  if (text.empty() || text.size() > 6 || text.find_first_not_of("0123456789") != std::string::npos) {
    throw Refused(2, name + " is " + (text.empty() ? "empty" : text) + ", expected a number");
  }
  return static_cast<unsigned>(std::stoul(text));
}

inline Options parse(const Command& command, int count, char** words) {
  Options chosen;
  const std::string help = std::string(", see ") + command.name + " --help";
  std::map<std::string, std::string*> texts = {{"--model", &chosen.model},
                                               {"--tokens", &chosen.tokens},
                                               {"--state", &chosen.state},
                                               {"--state-out", &chosen.state_out},
                                               {"--logits", &chosen.logits}};
  if (command.data) texts["--data"] = &chosen.data;
  const std::map<std::string, unsigned*> numbers = {
      {"--chunk", &chosen.chunk}, {"--bench", &chosen.bench}, {"--threads", &chosen.threads}};
  const std::map<std::string, bool*> switches = {
      {"--emulated", &chosen.emulated}, {"--serve", &chosen.serve}, {"--help", &chosen.help}};
  for (int i = 1; i < count; ++i) {
    const std::string name = words[i];
    if (switches.count(name)) {
      *switches.at(name) = true;
    } else if (!texts.count(name) && !numbers.count(name)) {
      throw Refused(2, "there is no option " + name + help);
    } else if (++i == count) {
      throw Refused(2, name + " needs a value");
    } else if (texts.count(name)) {
      *texts.at(name) = words[i];
    } else {
      *numbers.at(name) = number(name, words[i]);
    }
  }
  if (chosen.model.empty() && !chosen.help && !chosen.serve) throw Refused(2, "--model is missing" + help);
  return chosen;
}

inline std::vector<int64_t> ids_of(const std::string& given) {
  std::string text = given;
  if (std::ifstream file(given); file.good()) text.assign(std::istreambuf_iterator<char>(file), {});
  std::replace(text.begin(), text.end(), ',', ' ');
  std::istringstream words(text);
  std::vector<int64_t> ids;
  for (std::string word; words >> word;) ids.push_back(number("a token id", word));
  if (ids.empty()) throw Refused(2, "there are no token ids in " + given);
  return ids;
}

// Two sets of state tensors: a call reads one and writes the other.
class State {
 public:
  explicit State(std::vector<Bytes> initial) : now_(std::move(initial)), next_(now_) {}

  void step(Engine& engine, const int64_t* ids, size_t tokens, float* logits) {
    std::vector<const void*> before;
    std::vector<void*> after;
    for (const Bytes& bytes : now_) before.push_back(bytes.data());
    for (Bytes& bytes : next_) after.push_back(bytes.data());
    engine.step(ids, tokens, before.data(), after.data(), logits);
    std::swap(now_, next_);
  }

  void read(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    for (Bytes& bytes : now_) file.read(bytes.data(), static_cast<std::streamsize>(bytes.size()));
    if (!file.good() || file.peek() != EOF) throw Refused(2, path + " is not the state of this program");
  }

  const std::vector<Bytes>& tensors() const { return now_; }

 private:
  std::vector<Bytes> now_, next_;
};

class Runner {
 public:
  Runner(const Command& command, const Options& chosen)
      : chosen_(chosen), begun_(Clock::now()), engine_(command.open(chosen)) {
    engine_->prepare(1);
    if (chosen.chunk) engine_->prepare(chosen.chunk);
    record_.load = since(begun_);
    record_.model = chosen.model;
    record_.delegates = engine_->delegates();
    record_.threads = engine_->threads();
    record_.emulated = chosen.emulated;
  }

  Record run() {
    State state(engine_->initial());
    if (!chosen_.state.empty()) state.read(chosen_.state);
    const std::vector<int64_t> ids = ids_of(chosen_.tokens);
    size_t fed = 0;
    for (; chosen_.chunk && ids.size() - fed >= chosen_.chunk; fed += chosen_.chunk) {
      call(state, &ids[fed], chosen_.chunk, record_.prefill);
    }
    for (; fed < ids.size(); ++fed) call(state, &ids[fed], 1, record_.decode);
    for (unsigned i = 0; i < chosen_.bench; ++i) {
      const int64_t likeliest = record_.greedy.back();
      call(state, &likeliest, 1, record_.decode);
    }
    if (!chosen_.state_out.empty()) write(chosen_.state_out, state.tensors());
    return std::move(record_);
  }

  size_t vocabulary() const { return engine_->vocabulary(); }

 private:
  static double since(Clock::time_point before) {
    return std::chrono::duration<double, std::milli>(Clock::now() - before).count();
  }

  void call(State& state, const int64_t* ids, size_t tokens, std::vector<double>& times) {
    std::vector<float>& rows = record_.logits;
    const size_t row = rows.size();
    rows.resize(row + vocabulary());
    const auto before = Clock::now();
    state.step(*engine_, ids, tokens, &rows[row]);
    const double took = since(before);
    if (record_.fed.empty()) {
      record_.first = took;
    } else {
      times.push_back(took);
    }
    record_.calls.push_back(tokens);
    record_.fed.insert(record_.fed.end(), ids, ids + tokens);
    for (size_t i = row; i < rows.size(); ++i) {
      if (!std::isfinite(rows[i])) {
        throw Refused(1, "the logits after " + std::to_string(record_.fed.size()) + " tokens are not finite");
      }
    }
    const auto begin = rows.begin() + static_cast<std::ptrdiff_t>(row);
    record_.greedy.push_back(std::max_element(begin, rows.end()) - begin);
  }

  const Options& chosen_;
  const Clock::time_point begun_;
  std::unique_ptr<Engine> engine_;
  Record record_;
};

// The whole program: what `main` returns.
inline int program(const Command& command, int count, char** words) {
  try {
    const Options chosen = parse(command, count, words);
    if (chosen.help) {
      std::printf("usage: %s --model FILE [options]\n\n%s%s", command.name, command.usage, COMMON + 1);
      return 0;
    }
    if (chosen.serve) return command.serve(chosen);
    Runner runner(command, chosen);
    const Record record = runner.run();
    if (!chosen.logits.empty()) write_npy(chosen.logits, record.logits, runner.vocabulary());
    std::puts(json(record).c_str());
    return 0;
  } catch (const Refused& refused) {
    std::fprintf(stderr, "error: %s\n", refused.what());
    return refused.code;
  }
}

}  // namespace rwkv
