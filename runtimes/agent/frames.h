// The frames of frames.py, from a C++ program: a JSON header and raw tensors on a stream; it knows no request.
//
// A program that runs models implements Engine (engine.h) and has the rest from here; it needs a C++17 compiler:
//   json.h, json_parser.h  Value, Writer::write(value), Parser::parse(text)
//   frames.h    Frame, read(stream), write(stream, frame)
//   manifest.h  Manifest::read(folder): what of manifest.json steps an artifact
//   states.h    States: numbered, their buffers used again
//   serve.h     serve(offer, opener): the request loop of serve.py around an engine
//   program.h   program(command, count, words): the command line, --serve among it
#pragma once

#include "json_parser.h"

#include <algorithm>
#include <cstdio>
#include <cstring>

namespace rwkv::agent {

// The other side closed its end, between frames or within one.
struct Ended : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Elements in C order, little-endian.
struct Tensor {
  std::string dtype;  // one of DTYPES
  std::vector<int64_t> shape;
  std::vector<char> bytes;
};

using Tensors = std::map<std::string, Tensor>;

struct Frame {
  Value::Object header;
  Tensors tensors;
};

constexpr std::string_view MAGIC = "RWKA";
constexpr uint32_t VERSION = 1;
constexpr uint32_t HEADER_LIMIT = 4 << 20;            // bytes
constexpr uint64_t TENSOR_LIMIT = uint64_t{4} << 30;  // bytes of all tensors of a frame
constexpr size_t PIECE = 1 << 20;                     // bytes read at once: memory is taken as they come
constexpr std::pair<std::string_view, uint64_t> DTYPES[] = {{"float32", 4}, {"float16", 2}, {"int64", 8}, {"int32", 4}};

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "tensors are sent as they lie in memory");

// Bytes of a tensor, at most `most`; throws Malformed beyond it, and for types and shapes that there are not.
inline uint64_t size_of(const std::string& dtype, const std::vector<int64_t>& shape, uint64_t most = TENSOR_LIMIT) {
  const auto* known = std::find_if(std::begin(DTYPES), std::end(DTYPES), [&](auto& each) { return each.first == dtype; });
  if (known == std::end(DTYPES)) throw Malformed("a tensor of type '" + dtype + "'");
  uint64_t size = known->second;
  for (const int64_t axis : shape) {
    if (axis < 0) throw Malformed("a tensor with an axis of " + std::to_string(axis));
    if (axis != 0 && size > most / static_cast<uint64_t>(axis)) {
      throw Malformed("tensors of more than " + std::to_string(most) + " bytes");
    }
    size *= static_cast<uint64_t>(axis);
  }
  if (size > most) throw Malformed("tensors of more than " + std::to_string(most) + " bytes");
  return size;
}

inline std::vector<char> read_exactly(std::FILE* stream, uint64_t size) {
  std::vector<char> made;
  while (made.size() < size) {
    const size_t start = made.size();
    made.resize(start + std::min<uint64_t>(PIECE, size - start));
    if (std::fread(made.data() + start, 1, made.size() - start, stream) != made.size() - start) {
      throw Ended("closed within " + std::to_string(size) + " bytes");
    }
  }
  return made;
}

// The next frame; throws Ended where there is none, Malformed for anything else that is not one.
inline Frame read(std::FILE* stream) {
  const std::vector<char> prefix = read_exactly(stream, MAGIC.size() + 2 * sizeof(uint32_t));
  uint32_t version = 0, length = 0;
  std::memcpy(&version, prefix.data() + MAGIC.size(), sizeof version);
  std::memcpy(&length, prefix.data() + MAGIC.size() + sizeof version, sizeof length);
  if (std::string_view(prefix.data(), MAGIC.size()) != MAGIC) throw Malformed("expected a message");
  if (version != VERSION) throw Malformed("speaks version " + std::to_string(version) + " of the protocol");
  if (length > HEADER_LIMIT) throw Malformed("a header of " + std::to_string(length) + " bytes");
  const std::vector<char> text = read_exactly(stream, length);

  Frame frame{Parser::parse({text.data(), text.size()}).object(), {}};
  const auto listed = frame.header.extract("tensors");
  if (listed.empty()) throw Malformed("a header without 'tensors'");
  std::vector<std::pair<std::string, uint64_t>> sizes;
  uint64_t left = TENSOR_LIMIT;
  for (const Value& entry : listed.mapped().list()) {
    const Value::List& parts = entry.list();
    if (parts.size() != 3) throw Malformed("a tensor that is not [name, type, shape]");
    Tensor tensor{parts[1].text(), {}, {}};
    for (const Value& axis : parts[2].list()) tensor.shape.push_back(axis.integer());
    sizes.emplace_back(parts[0].text(), size_of(tensor.dtype, tensor.shape, left));
    left -= sizes.back().second;
    if (!frame.tensors.emplace(parts[0].text(), std::move(tensor)).second) throw Malformed("a tensor listed twice");
  }
  for (const auto& [name, size] : sizes) frame.tensors[name].bytes = read_exactly(stream, size);
  return frame;
}

// Sends a frame; throws Ended where nobody reads.
inline void write(std::FILE* stream, const Frame& frame) {
  Value::List listed;
  for (const auto& [name, tensor] : frame.tensors) {
    Value::List shape(tensor.shape.begin(), tensor.shape.end());
    listed.push_back(Value::List{name, tensor.dtype, std::move(shape)});
  }
  Value::Object header = frame.header;
  header["tensors"] = std::move(listed);
  const std::string text = Writer::write(header);
  const auto length = static_cast<uint32_t>(text.size());
  const auto put = [&](const void* data, size_t size) {
    if (std::fwrite(data, 1, size, stream) != size) throw Ended("nobody reads");
  };
  put(MAGIC.data(), MAGIC.size());
  put(&VERSION, sizeof VERSION);
  put(&length, sizeof length);
  put(text.data(), text.size());
  for (const auto& [name, tensor] : frame.tensors) put(tensor.bytes.data(), tensor.bytes.size());
  if (std::fflush(stream) != 0) throw Ended("nobody reads");
}

}  // namespace rwkv::agent
