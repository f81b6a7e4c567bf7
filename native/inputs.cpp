#include "inputs.h"

#include <algorithm>
#include <initializer_list>

namespace keywise {
namespace {

// The name of a broken rule, or null.
using BrokenRule = const char*;

bool is_float(Element element) {
  return element != Element::scaled_int8 && element != Element::unsupported;
}

// Of all elements the widest.
constexpr int64_t kMaxElementBytes = int64_t(sizeof(double));

// Returns whether the bytes of an array of these sizes are countable in 64 bits. Sizes of 0 do not
// count: products of the other sizes, of which such an array has none either, must fit too.
bool is_countable(std::initializer_list<int64_t> shape) {
  int64_t bytes = kMaxElementBytes;
  for (const int64_t size : shape)
    if (size > 0 && __builtin_mul_overflow(bytes, size, &bytes)) return false;
  return true;
}

// Returns whether the distance from the first element to any other fits 64 bits.
bool is_addressable(const InputArray& array) {
  int64_t bytes = 0;
  for (int axis = 0; axis < 4; ++axis) {
    if (array.shape[axis] <= 1) continue;
    int64_t extent = 0;
    if (__builtin_mul_overflow(array.shape[axis] - 1, array.stride[axis], &extent)) return false;
    if (__builtin_mul_overflow(extent, extent < 0 ? -kMaxElementBytes : kMaxElementBytes, &extent))
      return false;
    if (__builtin_add_overflow(bytes, extent, &bytes)) return false;
  }
  return true;
}

BrokenRule check_array(const InputArray& array) {
  if (array.axes != 4) return "axes";
  if (array.shape[3] == 0) return "head_dim";
  if (array.shape[2] > kMaxTokens) return "tokens";
  if (!is_countable({array.shape[0], array.shape[1], array.shape[2], array.shape[3]}))
    return "size";
  if (!is_addressable(array)) return "strides";
  return nullptr;
}

BrokenRule check_query(const InputArray& query) {
  if (!is_float(query.element)) return "float";
  return check_array(query);
}

// Checks keys or values against the query.
BrokenRule check_stored(const InputArray& array, const InputArray& query) {
  const bool scaled = array.element == Element::scaled_int8;
  if (!scaled && !is_float(array.element)) return "float";
  if (const BrokenRule broken = check_array(array)) return broken;
  if (!scaled && array.element != query.element) return "query dtype";
  if (array.shape[0] != query.shape[0]) return "query batch";
  return nullptr;
}

std::optional<Refusal> check_chunk(const InputArray& query, const InputChunk& chunk,
                                   int64_t number) {
  const InputArray& key = chunk.key;
  const InputArray& value = chunk.value;
  if (const BrokenRule broken = check_query(query)) return Refusal{"query", number, broken};
  if (const BrokenRule broken = check_stored(key, query)) return Refusal{"key", number, broken};
  if (const BrokenRule broken = check_stored(value, query)) return Refusal{"value", number, broken};
  if (key.element != value.element) return Refusal{"value", number, "key dtype"};
  if (key.shape[3] != query.shape[3]) return Refusal{"key", number, "query head_dim"};
  if (!std::equal(key.shape, key.shape + 3, value.shape))
    return Refusal{"value", number, "key tokens"};
  if (key.shape[1] == 0 || query.shape[1] % key.shape[1] != 0)
    return Refusal{"query", number, "key heads"};
  return std::nullopt;
}

bool agrees(const InputArray& array, const InputArray& first) {
  return array.shape[1] == first.shape[1] && array.shape[3] == first.shape[3];
}

std::optional<Refusal> check_against_first(const InputChunk& chunk, const InputChunk& first,
                                           int64_t number) {
  if (chunk.key.element != first.key.element) return Refusal{"key", number, "chunk dtype"};
  if (!agrees(chunk.key, first.key)) return Refusal{"key", number, "chunk shape"};
  if (chunk.value.element != first.value.element) return Refusal{"value", number, "chunk dtype"};
  if (!agrees(chunk.value, first.value)) return Refusal{"value", number, "chunk shape"};
  return std::nullopt;
}

Tensor make_tensor(const InputArray& array) {
  Tensor tensor;
  tensor.data = array.data;
  // The stride of an axis of one element may be any number, which kernels need not multiply.
  for (int axis = 0; axis < 4; ++axis)
    tensor.stride[axis] = array.shape[axis] > 1 ? array.stride[axis] : 0;
  return tensor;
}

}  // namespace

std::optional<Refusal> check_inputs(const InputArray& query, const std::vector<InputChunk>& chunks,
                                    Sizes& sizes) {
  sizes = {};
  for (size_t i = 0; i < chunks.size(); ++i) {
    if (const auto refusal = check_chunk(query, chunks[i], int64_t(i))) return refusal;
  }
  for (size_t i = 0; i < chunks.size(); ++i) {
    if (const auto refusal = check_against_first(chunks[i], chunks[0], int64_t(i))) return refusal;
    sizes.keys += chunks[i].key.shape[2];
    if (sizes.keys > kMaxTokens) return Refusal{"key", int64_t(i), "tokens of all chunks"};
  }
  sizes.batch = query.shape[0];
  sizes.query_heads = query.shape[1];
  sizes.queries = query.shape[2];
  sizes.head_dim = query.shape[3];
  sizes.key_heads = chunks[0].key.shape[1];
  sizes.value_dim = chunks[0].value.shape[3];
  if (!is_countable({sizes.batch, sizes.query_heads, sizes.queries, sizes.value_dim}))
    return Refusal{"value", 0, "output size"};
  return std::nullopt;
}

std::vector<Chunk> make_chunks(const std::vector<InputChunk>& inputs) {
  std::vector<Chunk> chunks;
  chunks.reserve(inputs.size());
  int64_t keys = 0;
  for (const InputChunk& input : inputs) {
    Chunk chunk;
    chunk.key = make_tensor(input.key);
    chunk.value = make_tensor(input.value);
    chunk.key_scale = input.key.scales;
    chunk.value_scale = input.value.scales;
    chunk.first_key = keys;
    chunk.keys = input.key.shape[2];
    keys += chunk.keys;
    const bool is_only_chunk = chunks.empty() && &input == &inputs.back();
    if (chunk.keys > 0 || is_only_chunk) chunks.push_back(chunk);
  }
  return chunks;
}

Dtype to_dtype(Element element) {
  switch (element) {
    case Element::float16:
      return Dtype::float16;
    case Element::bfloat16:
      return Dtype::bfloat16;
    case Element::scaled_int8:
      return Dtype::int8;
    default:
      return Dtype::float32;
  }
}

}  // namespace keywise
