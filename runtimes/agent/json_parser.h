// JSON (RFC 8259) read strictly: one value for a whole text, or the reason why it is none and where.
#pragma once

#include "json.h"

namespace rwkv::agent {

// A whole text as one value. Numbers beyond 64 bits become floating; nesting is limited.
class Parser {
 public:
  static Value parse(std::string_view text) {
    if (!is_utf8(text)) throw Malformed("it is not UTF-8");
    Parser parser(text);
    Value value = parser.value(0);
    parser.blanks();
    if (parser.at_ != text.size()) parser.fail("expected the end");
    return value;
  }

 private:
  static constexpr int DEEPEST = 64;

  explicit Parser(std::string_view text) : text_(text) {}

  [[noreturn]] void fail(const std::string& what) const { throw Malformed(what + " at byte " + std::to_string(at_)); }
  char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }
  void blanks() {
    while (peek() == ' ' || peek() == '\n' || peek() == '\t' || peek() == '\r') ++at_;
  }
  bool taken(std::string_view word) {
    if (text_.substr(at_, word.size()) != word) return false;
    at_ += word.size();
    return true;
  }
  void expect(const char* word) {
    blanks();
    if (!taken(word)) fail(std::string("expected ") + word);
  }

  Value value(int depth) {
    if (depth > DEEPEST) fail("nested too deep");
    blanks();
    if (peek() == '{') return object(depth);
    if (peek() == '[') return list(depth);
    if (peek() == '"') return string();
    if (taken("true")) return true;
    if (taken("false")) return false;
    if (taken("null")) return {};
    return number();
  }

  Value object(int depth) {
    Value::Object members;
    expect("{");
    blanks();
    if (taken("}")) return members;
    do {
      blanks();
      std::string name = string();
      expect(":");
      if (!members.emplace(name, value(depth + 1)).second) fail("'" + name + "' twice");
      blanks();
    } while (taken(","));
    expect("}");
    return members;
  }

  Value list(int depth) {
    Value::List items;
    expect("[");
    blanks();
    if (taken("]")) return items;
    do {
      items.push_back(value(depth + 1));
      blanks();
    } while (taken(","));
    expect("]");
    return items;
  }

  Value number() {
    const size_t start = at_;
    const auto digits = [&] {
      const size_t first = at_;
      while (peek() >= '0' && peek() <= '9') ++at_;
      if (at_ == first) fail("expected a value");
      return at_ - first;
    };
    taken("-");
    const bool zero = peek() == '0';
    if (digits() > 1 && zero) fail("a number starts with 0");
    bool whole = true;
    if (taken(".")) whole = (digits(), false);
    if (taken("e") || taken("E")) {
      if (!taken("+")) taken("-");
      whole = (digits(), false);
    }
    const char *first = text_.data() + start, *last = text_.data() + at_;
    int64_t integer = 0;
    if (whole && std::from_chars(first, last, integer).ec == std::errc()) return integer;
    double floating = 0;
    if (std::from_chars(first, last, floating).ec != std::errc()) fail("a number out of range");
    return floating;
  }

  std::string string() {
    expect("\"");
    std::string made;
    while (!taken("\"")) {
      if (at_ == text_.size() || static_cast<unsigned char>(peek()) < ' ') fail("a text does not end");
      if (peek() != '\\') {
        made += text_[at_++];
      } else {
        ++at_;
        escaped(made);
      }
    }
    return made;
  }

  void escaped(std::string& made) {
    static const std::map<char, char> ONES = {{'"', '"'},  {'\\', '\\'}, {'/', '/'},  {'b', '\b'},
                                              {'f', '\f'}, {'n', '\n'},  {'r', '\r'}, {'t', '\t'}};
    if (const auto found = ONES.find(peek()); found != ONES.end()) {
      ++at_;
      made += found->second;
      return;
    }
    uint32_t code = unit();
    if (code >= 0xD800 && code < 0xDC00) {
      const uint32_t low = unit_after("\\");
      if (low < 0xDC00 || low > 0xDFFF) fail("half a character");
      code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
    } else if (code >= 0xDC00 && code < 0xE000) {
      fail("half a character");
    }
    append(made, code);
  }

  uint32_t unit_after(const char* word) {
    if (!taken(word)) fail("half a character");
    return unit();
  }

  uint32_t unit() {
    if (!taken("u") || text_.size() - at_ < 4) fail("an escape that does not exist");
    uint32_t code = 0;
    const auto read = std::from_chars(text_.data() + at_, text_.data() + at_ + 4, code, 16);
    if (read.ptr != text_.data() + at_ + 4) fail("an escape that does not exist");
    at_ += 4;
    return code;
  }

  static void append(std::string& made, uint32_t code) {
    const int more = code < 0x80 ? 0 : code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;
    static constexpr uint32_t LEADS[] = {0, 0xC0, 0xE0, 0xF0};
    made += static_cast<char>(LEADS[more] | code >> (6 * more));
    for (int i = more - 1; i >= 0; --i) made += static_cast<char>(0x80 | (code >> (6 * i) & 0x3F));
  }

  std::string_view text_;
  size_t at_ = 0;
};

}  // namespace rwkv::agent
