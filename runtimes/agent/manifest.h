// What of an artifact's manifest.json a program needs that steps it; files are not verified, whoever sent them did.
#pragma once

#include "frames.h"

#include <fstream>
#include <iterator>
#include <limits>

namespace rwkv::agent {

// An exception of runtimes/errors.py: kind is its class, "Missing" or "BadArtifact", or "" for a runtime's own.
struct Trouble : std::runtime_error {
  Trouble(std::string kind, const std::string& message, std::string hint = "")
      : std::runtime_error(message), kind(std::move(kind)), hint(std::move(hint)) {}
  std::string kind, hint;
};

// One entry point, fields as in runtimes/manifest.py. beyond: the first field that asks for more than ids and state in,
// logits and state out ("lookup", "mask", "then", "output_rest"), or "".
struct Graph {
  int64_t tokens;
  std::string file, input, input_dtype, output, function;
  bool up_to;
  std::string beyond;
};

// One state tensor as the graphs carry it.
struct StateTensor {
  std::string name, dtype, input, output;
  std::vector<int64_t> shape;
  double fill;
  uint64_t bytes;
};

struct Manifest {
  int64_t vocabulary;
  std::vector<Graph> graphs;
  std::vector<StateTensor> state;
  std::string initial_state;  // the file with a tuned initial state, or ""

  // The graph that takes one token.
  const Graph& step() const {
    return *std::find_if(graphs.begin(), graphs.end(), [](const Graph& each) { return each.tokens == 1; });
  }

  // Throws Trouble.
  static Manifest read(const std::string& folder) {
    const std::string path = folder + "/manifest.json";
    std::ifstream file(path, std::ios::binary);
    if (!file.good()) throw Trouble("BadArtifact", folder + " is not an artifact: it has no manifest.json");
    const std::string text(std::istreambuf_iterator<char>(file), {});
    try {
      return parsed(Parser::parse(text));
    } catch (const Malformed& error) {
      throw Trouble("BadArtifact", path + ": " + error.what());
    }
  }

 private:
  static constexpr int64_t SCHEMA = 1;

  static Manifest parsed(const Value& document) {
    if (document.at("schema").integer() != SCHEMA) throw Malformed("another schema than this program reads");
    Manifest made{document.at("model").at("vocab").integer(), {}, {}, text(document, "initial_state")};
    if (made.vocabulary < 1 || made.vocabulary > std::numeric_limits<int32_t>::max()) throw Malformed("no vocabulary");
    for (const Value& each : document.at("graphs").list()) made.graphs.push_back(graph(each));
    for (const Value& each : document.at("state").list()) made.state.push_back(tensor(each));
    const auto one = [](const Graph& each) { return each.tokens == 1; };
    if (std::none_of(made.graphs.begin(), made.graphs.end(), one)) throw Malformed("there is no single-token graph");
    return made;
  }

  static Graph graph(const Value& given) {
    Graph made{given.at("tokens").integer(), given.at("file").text(),   given.at("input").text(),
               text(given, "input_dtype"),   given.at("output").text(), text(given, "function"),
               false,                        ""};
    if (const Value* any = given.find("up_to")) made.up_to = any->truth();
    if (made.tokens < 1) throw Malformed("a graph for no tokens");
    for (const char* name : {"lookup", "mask", "then", "output_rest"}) {
      const Value* more = given.find(name);
      const bool some = more != nullptr && !(std::holds_alternative<Value::List>(more->held()) && more->list().empty());
      if (some && made.beyond.empty()) made.beyond = name;
    }
    return made;
  }

  static StateTensor tensor(const Value& given) {
    StateTensor made{given.at("name").text(),   given.at("dtype").text(), given.at("input").text(),
                     given.at("output").text(), {},                       given.at("fill").number(), 0};
    for (const Value& axis : given.at("shape").list()) made.shape.push_back(axis.integer());
    made.bytes = size_of(made.dtype, made.shape);
    if (given.find("scale") != nullptr) throw Malformed(made.name + " is half of a state, which this program cannot join");
    return made;
  }

  static std::string text(const Value& given, const char* name) {
    const Value* found = given.find(name);
    return found == nullptr ? "" : found->text();
  }
};

}  // namespace rwkv::agent
