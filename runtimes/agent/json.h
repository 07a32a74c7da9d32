// JSON values, and how they are written; json_parser.h reads them.
#pragma once

#include <charconv>
#include <cmath>
#include <cstdint>
#include <map>
#include <stdexcept>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace rwkv::agent {

// A text is not JSON, or not what is expected at that place.
struct Malformed : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// One value. The accessors throw Malformed where it is of another kind.
class Value {
 public:
  using List = std::vector<Value>;
  using Object = std::map<std::string, Value>;
  using Held = std::variant<std::monostate, bool, int64_t, double, std::string, List, Object>;

  Value() = default;
  Value(bool given) : held_(given) {}
  Value(int given) : held_(int64_t{given}) {}
  Value(int64_t given) : held_(given) {}
  Value(double given) : held_(given) {}
  Value(const char* given) : held_(std::string(given)) {}
  Value(std::string given) : held_(std::move(given)) {}
  Value(List given) : held_(std::move(given)) {}
  Value(Object given) : held_(std::move(given)) {}

  bool null() const { return std::holds_alternative<std::monostate>(held_); }
  bool truth() const { return as<bool>("true or false"); }
  int64_t integer() const { return as<int64_t>("a whole number"); }
  double number() const {
    const auto* whole = std::get_if<int64_t>(&held_);
    return whole != nullptr ? static_cast<double>(*whole) : as<double>("a number");
  }
  const std::string& text() const { return as<std::string>("a text"); }
  const List& list() const { return as<List>("a list"); }
  const Object& object() const { return as<Object>("an object"); }

  const Held& held() const { return held_; }

  // The member `name` of an object; `find` gives nullptr where there is none or it is null.
  const Value* find(const std::string& name) const {
    const auto found = object().find(name);
    return found == object().end() || found->second.null() ? nullptr : &found->second;
  }
  const Value& at(const std::string& name) const {
    const Value* found = find(name);
    if (found == nullptr) throw Malformed("there is no '" + name + "'");
    return *found;
  }

 private:
  template <class T>
  const T& as(const char* expected) const {
    if (const T* found = std::get_if<T>(&held_)) return *found;
    throw Malformed(std::string("expected ") + expected);
  }

  Held held_;
};

// Whether bytes are UTF-8 (RFC 3629), surrogates and overlong forms excluded.
inline bool is_utf8(std::string_view text) {
  for (size_t at = 0; at < text.size();) {
    const auto byte = [&](size_t index) { return static_cast<unsigned char>(index < text.size() ? text[index] : 0); };
    const unsigned char first = byte(at);
    const size_t more = first < 0x80 ? 0 : first < 0xC2 ? 9 : first < 0xE0 ? 1 : first < 0xF0 ? 2 : first < 0xF5 ? 3 : 9;
    if (more == 9) return false;
    for (size_t i = 1; i <= more; ++i) {
      if ((byte(at + i) & 0xC0) != 0x80) return false;
    }
    const unsigned char second = byte(at + 1);
    if ((first == 0xE0 && second < 0xA0) || (first == 0xED && second > 0x9F)) return false;
    if ((first == 0xF0 && second < 0x90) || (first == 0xF4 && second > 0x8F)) return false;
    at += more + 1;
  }
  return true;
}

// A value as JSON. Texts that are no UTF-8 lose what is not ASCII; numbers that are not finite become null.
class Writer {
 public:
  static std::string write(const Value& value) { return std::visit(Writer(), value.held()); }

  std::string operator()(std::monostate) const { return "null"; }
  std::string operator()(bool truth) const { return truth ? "true" : "false"; }
  std::string operator()(int64_t number) const { return std::to_string(number); }
  std::string operator()(double number) const {
    char text[32];
    return std::isfinite(number) ? std::string(text, std::to_chars(text, text + sizeof text, number).ptr) : "null";
  }
  std::string operator()(const std::string& text) const {
    const bool kept = is_utf8(text);
    std::string made = "\"";
    for (const char each : text) {
      const auto byte = static_cast<unsigned char>(each);
      if (each == '"' || each == '\\') made += '\\';
      if (each == '\n') {
        made += "\\n";
      } else {
        made += byte < ' ' ? ' ' : byte < 0x80 || kept ? each : '?';
      }
    }
    return made + '"';
  }
  std::string operator()(const Value::List& items) const {
    std::string made;
    for (const Value& item : items) made += (made.empty() ? "" : ", ") + write(item);
    return "[" + made + "]";
  }
  std::string operator()(const Value::Object& members) const {
    std::string made;
    for (const auto& [name, member] : members) {
      made += (made.empty() ? "" : ", ") + (*this)(name) + ": " + write(member);
    }
    return "{" + made + "}";
  }
};

}  // namespace rwkv::agent
