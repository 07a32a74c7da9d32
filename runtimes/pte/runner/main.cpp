// rwkv-step: steps an ExecuTorch program of ours with state carried and prints what came out and how long it took.
//
// Exit status: 0 done, 1 the logits are not finite, 2 the call is wrong, 3 this machine or runner lacks something.
#include "record.h"

#include <chrono>
#include <cmath>

namespace {

using rwkv::Bytes;
using rwkv::Method;
using rwkv::Port;
using rwkv::Record;
using rwkv::Refused;
using rwkv::ScalarType;
using Clock = std::chrono::steady_clock;
using Half = executorch::aten::Half;

constexpr double HALF_FILL = -6.0e4;  // for -1e30, which float16 does not hold
constexpr const char* USAGE =
    R"(usage: rwkv-step --model FILE [options]

  --model FILE       the program, model.pte
  --data FILE        its weights, where they are separate; default: model.ptd beside it, if there
  --tokens IDS|FILE  token ids to feed, separated by commas or blanks; default: 0
  --chunk N          feed N ids a call while as many are left, with the method prefillN
  --bench N          then N more tokens, each the likeliest after the last
  --state FILE       initial state: the tensors' elements, little endian, in the program's order; default: its fills
  --state-out FILE   where the last state goes, in the same form
  --logits FILE.npy  where the logits go, float32, a row for each call
  --threads N        default: the runtime's choice
  --emulated         the processor is emulated: report no times, no memory, no processor
)";

struct Options {
  std::string model, data, tokens = "0", state, state_out, logits;
  unsigned chunk = 0, bench = 0, threads = 0;
  bool emulated = false, help = false;
};

unsigned number(const std::string& name, const std::string& text) {
  if (text.empty() || text.size() > 6 || text.find_first_not_of("0123456789") != std::string::npos) {
    throw Refused(2, name + " is " + (text.empty() ? "empty" : text) + ", expected a number");
  }
  return static_cast<unsigned>(std::stoul(text));
}

Options parse(int count, char** words) {
  Options chosen;
  const std::map<std::string, std::string*> texts = {
      {"--model", &chosen.model}, {"--data", &chosen.data},           {"--tokens", &chosen.tokens},
      {"--state", &chosen.state}, {"--state-out", &chosen.state_out}, {"--logits", &chosen.logits}};
  const std::map<std::string, unsigned*> numbers = {
      {"--chunk", &chosen.chunk}, {"--bench", &chosen.bench}, {"--threads", &chosen.threads}};
  for (int i = 1; i < count; ++i) {
    const std::string name = words[i];
    if (name == "--emulated") {
      chosen.emulated = true;
    } else if (name == "--help") {
      chosen.help = true;
    } else if (!texts.count(name) && !numbers.count(name)) {
      throw Refused(2, "there is no option " + name + ", see rwkv-step --help");
    } else if (++i == count) {
      throw Refused(2, name + " needs a value");
    } else if (texts.count(name)) {
      *texts.at(name) = words[i];
    } else {
      *numbers.at(name) = number(name, words[i]);
    }
  }
  if (chosen.model.empty() && !chosen.help) throw Refused(2, "--model is missing, see rwkv-step --help");
  return chosen;
}

std::string data_of(const Options& chosen) {
  if (!chosen.data.empty()) return chosen.data;
  const std::string beside = chosen.model.substr(0, chosen.model.rfind('.')) + ".ptd";
  return std::ifstream(beside).good() ? beside : "";
}

std::vector<int64_t> ids_of(const std::string& given) {
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
  State(const Method& method, const std::vector<double>& fills) {
    if (fills.size() != method.state.size()) throw Refused(2, "the program's state_fills do not fit its inputs");
    for (size_t i = 0; i < fills.size(); ++i) {
      now_.push_back(filled(method.state[i], fills[i]));
      next_.emplace_back(method.state[i].bytes);
    }
  }

  void step(rwkv::Stepper& stepper, Method& method, const int64_t* ids, void* logits) {
    std::vector<const void*> in;
    std::vector<void*> out;
    for (const Bytes& bytes : now_) in.push_back(bytes.data());
    for (Bytes& bytes : next_) out.push_back(bytes.data());
    stepper.step(method, ids, in.data(), out.data(), logits);
    std::swap(now_, next_);
  }

  void read(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    for (Bytes& bytes : now_) file.read(bytes.data(), static_cast<std::streamsize>(bytes.size()));
    if (!file.good() || file.peek() != EOF) throw Refused(2, path + " is not the state of this program");
  }

  const std::vector<Bytes>& tensors() const { return now_; }

 private:
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

  std::vector<Bytes> now_, next_;
};

class Runner {
 public:
  explicit Runner(const Options& chosen)
      : chosen_(chosen), begun_(Clock::now()), stepper_(chosen.model, data_of(chosen), chosen.threads) {
    decode_ = &stepper_.method("decode");
    if (chosen.chunk) prefill_ = &stepper_.method("prefill" + std::to_string(chosen.chunk));
    record_.load = since(begun_);
    record_.model = chosen.model;
    record_.delegates = decode_->delegates;
    record_.emulated = chosen.emulated;
  }

  Record run() {
    std::vector<double> fills;
    for (const auto& fill : stepper_.constant("state_fills")) fills.push_back(fill.toDouble());
    State state(*decode_, fills);
    if (!chosen_.state.empty()) state.read(chosen_.state);
    const std::vector<int64_t> ids = ids_of(chosen_.tokens);
    size_t fed = 0;
    while (prefill_ != nullptr && ids.size() - fed >= chosen_.chunk) {
      call(state, *prefill_, &ids[fed], record_.prefill);
      fed += chosen_.chunk;
    }
    for (; fed < ids.size(); ++fed) call(state, *decode_, &ids[fed], record_.decode);
    for (unsigned i = 0; i < chosen_.bench; ++i) {
      const int64_t likeliest = record_.greedy.back();
      call(state, *decode_, &likeliest, record_.decode);
    }
    if (!chosen_.state_out.empty()) rwkv::write(chosen_.state_out, state.tensors());
    return std::move(record_);
  }

  size_t vocabulary() const { return decode_->logits.elements(); }

 private:
  static double since(Clock::time_point before) {
    return std::chrono::duration<double, std::milli>(Clock::now() - before).count();
  }

  void call(State& state, Method& method, const int64_t* ids, std::vector<double>& times) {
    Bytes raw(method.logits.bytes);
    const auto before = Clock::now();
    state.step(stepper_, method, ids, raw.data());
    const double took = since(before);
    if (record_.fed.empty()) {
      record_.first = took;
    } else {
      times.push_back(took);
    }
    record_.calls.push_back(method.tokens.elements());
    record_.fed.insert(record_.fed.end(), ids, ids + method.tokens.elements());
    keep(method.logits, raw);
  }

  void keep(const Port& port, const Bytes& raw) {
    const bool half = port.type == ScalarType::Half;
    if (!half && port.type != ScalarType::Float) throw Refused(2, "the logits are neither float32 nor float16");
    int64_t likeliest = 0;
    const size_t row = record_.logits.size();
    for (size_t i = 0; i < port.elements(); ++i) {
      const float value = half ? static_cast<float>(reinterpret_cast<const Half*>(raw.data())[i])
                               : reinterpret_cast<const float*>(raw.data())[i];
      if (!std::isfinite(value)) {
        throw Refused(1, "the logits after " + std::to_string(record_.fed.size()) + " tokens are not finite");
      }
      record_.logits.push_back(value);
      if (value > record_.logits[row + likeliest]) likeliest = static_cast<int64_t>(i);
    }
    record_.greedy.push_back(likeliest);
  }

  const Options& chosen_;
  const Clock::time_point begun_;
  rwkv::Stepper stepper_;
  Method* decode_ = nullptr;
  Method* prefill_ = nullptr;
  Record record_;
};

void run(const Options& chosen) {
  Runner runner(chosen);
  const Record record = runner.run();
  if (!chosen.logits.empty()) rwkv::write_npy(chosen.logits, record.logits, runner.vocabulary());
  std::puts(rwkv::json(record).c_str());
}

}  // namespace

int main(int count, char** words) {
  try {
    const Options chosen = parse(count, words);
    if (chosen.help) {
      std::fputs(USAGE, stdout);
    } else {
      run(chosen);
    }
    return 0;
  } catch (const Refused& refused) {
    std::fprintf(stderr, "error: %s\n", refused.what());
    return refused.code;
  }
}
