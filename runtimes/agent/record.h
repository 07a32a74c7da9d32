// What calls gave, as one line of JSON and as NumPy files; it runs nothing.
#pragma once

#include "engine.h"

#include <sys/resource.h>

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <set>
#include <sstream>

namespace rwkv {

#if defined(__aarch64__)
constexpr const char* MACHINE = "aarch64";
#else
constexpr const char* MACHINE = "x86_64";
#endif

// Times are in milliseconds, one a call, the very first call's apart. emulated: they mean nothing and are not told.
struct Record {
  std::string model;
  std::vector<std::string> delegates;
  std::vector<float> logits;         // a row for each call
  std::vector<size_t> calls;         // tokens of each call
  std::vector<int64_t> fed, greedy;  // ids given; the likeliest id after each call
  std::vector<double> decode, prefill;
  double load = 0, first = 0;
  size_t threads = 0;
  bool emulated = false;
};

inline void write(const std::string& path, const std::vector<Bytes>& parts) {
  const std::string part = path + ".part";
  std::ofstream file(part, std::ios::binary);
  for (const Bytes& bytes : parts) file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  file.close();
  if (!file.good() || std::rename(part.c_str(), path.c_str()) != 0) throw Refused(2, "cannot write " + path);
}

// NumPy's format 1.0: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
inline void write_npy(const std::string& path, const std::vector<float>& values, size_t columns) {
  std::string header = "{'descr': '<f4', 'fortran_order': False, 'shape': (" + std::to_string(values.size() / columns) +
                       ", " + std::to_string(columns) + "), }";
  header.resize((10 + header.size()) / 64 * 64 + 64 - 11, ' ');
  header += '\n';
  const auto size = static_cast<uint16_t>(header.size());
  Bytes head = {'\x93', 'N', 'U', 'M', 'P', 'Y', 1, 0, static_cast<char>(size & 255), static_cast<char>(size >> 8)};
  head.insert(head.end(), header.begin(), header.end());
  const char* begin = reinterpret_cast<const char*>(values.data());
  write(path, {head, Bytes(begin, begin + values.size() * sizeof(float))});
}

// 64-bit FNV-1a of the logits' bytes: http://www.isthe.com/chongo/tech/comp/fnv/
inline std::string digest(const std::vector<float>& values) {
  uint64_t hash = 0xcbf29ce484222325;
  const auto* bytes = reinterpret_cast<const unsigned char*>(values.data());
  for (size_t i = 0; i < values.size() * sizeof(float); ++i) hash = (hash ^ bytes[i]) * 0x100000001b3;
  char text[17];
  std::snprintf(text, sizeof text, "%016llx", static_cast<unsigned long long>(hash));
  return text;
}

// The models of the processor's cores, each once; "" where the system does not say.
inline std::string processor() {
  std::ifstream file("/proc/cpuinfo");
  std::set<std::string> models;
  std::string implementer;
  for (std::string line; std::getline(file, line);) {
    const std::string value = line.substr(std::min(line.size(), line.find(':') + 2));
    if (line.rfind("model name", 0) == 0) models.insert(value);
    if (line.rfind("CPU implementer", 0) == 0) implementer = value;
    if (line.rfind("CPU part", 0) == 0) models.insert("Arm " + implementer + "/" + value);
  }
  std::string all;
  for (const auto& model : models) all += (all.empty() ? "" : " + ") + model;
  return all;
}

inline long peak_rss_bytes() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
#ifdef __APPLE__
  return usage.ru_maxrss;
#else
  return usage.ru_maxrss * 1024;
#endif
}

inline double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const size_t half = values.size() / 2;
  return values.size() % 2 ? values[half] : (values[half - 1] + values[half]) / 2;
}

inline std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    out += static_cast<unsigned char>(c) < ' ' ? ' ' : c;
  }
  return out + '"';
}

template <typename T>
std::string listed(const std::vector<T>& values) {
  std::ostringstream out;
  for (size_t i = 0; i < values.size(); ++i) out << (i ? ", " : "") << values[i];
  return "[" + out.str() + "]";
}

inline std::string timed(const Record& record) {
  std::ostringstream out;
  out << ", \"cpu\": " << quoted(processor()) << ", \"peak_rss_bytes\": " << peak_rss_bytes()
      << ", \"load_ms\": " << record.load << ", \"first_call_ms\": " << record.first
      << ", \"decode_ms\": " << listed(record.decode) << ", \"prefill_ms\": " << listed(record.prefill);
  if (!record.decode.empty()) out << ", \"tokens_per_second\": " << 1000 / median(record.decode);
  return out.str();
}

inline std::string json(const Record& record) {
  std::vector<std::string> delegates;
  for (const auto& name : record.delegates) delegates.push_back(quoted(name));
  std::ostringstream out;
  out << "{\"model\": " << quoted(record.model) << ", \"machine\": " << quoted(MACHINE)
      << ", \"delegates\": " << listed(delegates) << ", \"threads\": " << record.threads
      << ", \"emulated\": " << (record.emulated ? "true" : "false") << ", \"calls\": " << listed(record.calls)
      << ", \"fed\": " << listed(record.fed) << ", \"greedy\": " << listed(record.greedy)
      << ", \"digest\": " << quoted(digest(record.logits)) << (record.emulated ? "" : timed(record)) << "}";
  return out.str();
}

}  // namespace rwkv
