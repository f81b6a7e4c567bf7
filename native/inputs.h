// Query, keys and values as a caller describes them, and the rules that they must satisfy.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "problem.h"

namespace keywise {

// Tokens are numbered in 32 bits.
constexpr int64_t kMaxTokens = (int64_t(1) << 31) - 1;

// What a caller's array holds. float64 is for the definition only; int8 comes with a scale per
// token and head.
enum class Element { float32, float16, bfloat16, float64, scaled_int8, unsupported };

// Axes are [batch, heads, tokens, head_dim]. Only arrays of 4 axes have their shape and strides
// set.
struct InputArray {
  const void* data = nullptr;
  Element element = Element::unsupported;
  int axes = 0;
  int64_t shape[4] = {0, 0, 0, 0};
  int64_t stride[4] = {0, 0, 0, 0};  // in elements
  Scales scales;                     // of scaled_int8
};

struct InputChunk {
  InputArray key;
  InputArray value;
};

struct Sizes {
  int64_t batch = 0;
  int64_t query_heads = 0;
  int64_t key_heads = 0;
  int64_t queries = 0;
  int64_t keys = 0;
  int64_t head_dim = 0;
  int64_t value_dim = 0;
};

// Which argument breaks which rule. The caller words the message.
struct Refusal {
  const char* argument = "";
  int64_t chunk = 0;
  const char* rule = "";
};

// Checks the arrays of one call against each other. Sets the sizes, or returns the first rule
// broken.
std::optional<Refusal> check_inputs(const InputArray& query, const std::vector<InputChunk>& chunks,
                                    Sizes& sizes);

// Returns the chunks that hold keys, in order and without gaps. Where none does, the result is one
// chunk without keys.
std::vector<Chunk> make_chunks(const std::vector<InputChunk>& inputs);

// Returns the dtype of an element in a problem. Only for elements that kernels compute.
Dtype to_dtype(Element element);

}  // namespace keywise
