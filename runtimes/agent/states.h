// The states of a session that were handed out, by number; it steps none.
#pragma once

#include "engine.h"
#include "manifest.h"

namespace rwkv::agent {

// A buffer for each tensor of manifest.state.
using State = std::vector<Bytes>;

// Buffers of states that were dropped are used again: a decode loop takes no new memory.
class States {
 public:
  int64_t keep(State made) {
    held_[++handed_] = std::move(made);
    return handed_;
  }

  // Throws Trouble.
  const State& at(int64_t number) const {
    const auto found = held_.find(number);
    if (found == held_.end()) throw Trouble("WrongCall", "the agent has no state " + std::to_string(number));
    return found->second;
  }

  void drop(int64_t number) {
    const auto found = held_.find(number);
    if (found == held_.end()) return;
    spare(std::move(found->second));
    held_.erase(found);
  }

  // Buffers that nobody needs any more.
  void spare(State unused) { free_.push_back(std::move(unused)); }

  // Buffers of the manifest's sizes, their content undefined.
  State room(const Manifest& manifest) {
    State made;
    if (!free_.empty()) {
      made = std::move(free_.back());
      free_.pop_back();
    }
    made.resize(manifest.state.size());
    for (size_t i = 0; i < made.size(); ++i) made[i].resize(manifest.state[i].bytes);
    return made;
  }

 private:
  std::map<int64_t, State> held_;
  std::vector<State> free_;
  int64_t handed_ = 0;
};

}  // namespace rwkv::agent
