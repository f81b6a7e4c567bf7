#include "calls.h"

#include <algorithm>
#include <cmath>

#include "../checked.h"
#include "../float_mode.h"

namespace keywise::python {
namespace {

MaskRules make_mask_rules(const CheckedMask& mask, const Sizes& sizes, int64_t first_key,
                          DefaultPositions& positions) {
  MaskRules rules;
  rules.causal = mask.causal;
  rules.left = mask.left;
  rules.right = mask.right;
  rules.keep_first = mask.keep_first;
  rules.first_key = first_key;
  if (mask.lengths) {
    rules.lengths = mask.lengths->data();
  } else {
    positions.lengths.assign(size_t(sizes.batch), checked_add(first_key, sizes.keys));
    rules.lengths = positions.lengths.data();
  }
  if (mask.starts) {
    rules.starts = mask.starts->data();
  } else {
    positions.starts.assign(size_t(sizes.batch), 0);
    rules.starts = positions.starts.data();
  }
  if (mask.documents) {
    rules.documents = mask.documents->data();
    rules.positions = int64_t(mask.documents->shape(1));
  }
  if (mask.allowed) {
    // Bytes: one that is neither 0 nor 1 is no bool of C++.
    rules.allowed = reinterpret_cast<const uint8_t*>(mask.allowed->data());
    copy_strides(*mask.allowed, rules.allowed_stride);
  }
  return rules;
}

Bias make_bias(const AnyInput<4>& array, Dtype dtype) {
  Bias bias;
  bias.data = array.data();
  bias.dtype = array.dtype() == nb::dtype<float>() ? Dtype::float32 : dtype;
  copy_strides(array, bias.stride);
  return bias;
}

}  // namespace

Problem make_problem(const Inputs& inputs, const CheckedMask& mask,
                     const std::optional<AnyInput<4>>& bias,
                     const std::optional<Input<float, 1>>& sinks, std::optional<double> scale,
                     double softcap, const DropoutPlan* dropout, int64_t first_key,
                     DefaultPositions& positions) {
  const Sizes& sizes = inputs.sizes();
  Problem problem;
  problem.batch = sizes.batch;
  problem.query_heads = sizes.query_heads;
  problem.key_heads = sizes.key_heads;
  problem.queries = sizes.queries;
  problem.keys = sizes.keys;
  problem.head_dim = sizes.head_dim;
  problem.value_dim = sizes.value_dim;
  problem.dtype = to_dtype(inputs.query().element);
  problem.stored_dtype = inputs.stored_dtype();
  problem.query.data = inputs.query().data;
  std::copy_n(inputs.query().stride, 4, problem.query.stride);
  problem.chunks = inputs.chunks().data();
  problem.chunk_count = int64_t(inputs.chunks().size());
  if (bias) problem.bias = make_bias(*bias, problem.dtype);
  if (sinks) problem.sinks = sinks->data();
  {
    const DefaultFloatMode mode;
    problem.scale = float(scale ? *scale : std::pow(double(sizes.head_dim), -0.5));
    problem.softcap = float(softcap);
    if (dropout)
      problem.dropout = {true, dropout->seed, dropout->offset, dropout->threshold,
                         float(dropout->factor)};
  }
  problem.visibility = make_mask_rules(mask, sizes, first_key, positions);
  return problem;
}

bool is_short(const Sizes& sizes) {
  constexpr double kMaxMultiplications = 1 << 18;
  double count = double(sizes.head_dim) + double(sizes.value_dim);
  // Results are written also where there are no keys or queries.
  for (const int64_t size : {sizes.batch, sizes.query_heads, sizes.queries, sizes.keys})
    count *= double(max(size, 1));
  return count <= kMaxMultiplications;
}

}  // namespace keywise::python
