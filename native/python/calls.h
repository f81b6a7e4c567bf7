// The arguments of a call as Python passes them, and the problem that they make.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstdint>
#include <optional>
#include <vector>

#include "../problem.h"
#include "arrays.h"

namespace keywise::python {

template <typename T, int N>
using Input = nb::ndarray<const T, nb::ndim<N>, nb::device::cpu>;

// Of any element type.
template <int N>
using AnyInput = nb::ndarray<nb::ro, nb::ndim<N>, nb::device::cpu>;

template <typename Array>
void copy_strides(const Array& array, int64_t* stride) {
  for (size_t axis = 0; axis < array.ndim(); ++axis) stride[axis] = array.stride(axis);
}

// A mask whose arrays are checked and broadcast. Without arrays it fits calls of any size.
struct CheckedMask {
  bool causal = false;
  int64_t left = -1;
  int64_t right = -1;
  int64_t keep_first = 0;
  std::optional<Input<int64_t, 1>> lengths;
  std::optional<Input<int64_t, 1>> starts;
  std::optional<Input<int32_t, 2>> documents;
  std::optional<Input<bool, 4>> allowed;
};

// Which statistics a call computes, for which queries.
struct StatsPlan {
  int64_t top_k = 0;
  bool key_mass = false;
  int64_t first_query = 0;
  int64_t last_query = 0;
  std::optional<int64_t> segment_count;
  std::optional<Input<int64_t, 2>> segment_ranges;
  std::optional<Input<float, 3>> query_weights;
};

// Which weights a call drops.
struct DropoutPlan {
  DropoutPlan(uint64_t seed, uint32_t offset, uint32_t threshold, double factor)
      : seed(seed), offset(offset), threshold(threshold), factor(factor) {}
  uint64_t seed;
  uint32_t offset;
  uint32_t threshold;
  double factor;
};

// Lengths and starts of a mask that has none.
struct DefaultPositions {
  std::vector<int64_t> lengths;
  std::vector<int64_t> starts;
};

// Returns the problem of a call, without results. Its arrays live as long as the arguments.
Problem make_problem(const Inputs& inputs, const CheckedMask& mask,
                     const std::optional<AnyInput<4>>& bias,
                     const std::optional<Input<float, 1>>& sinks, std::optional<double> scale,
                     double softcap, const DropoutPlan* dropout, int64_t first_key,
                     DefaultPositions& positions);

// Returns whether a call is over in microseconds: giving the GIL away and taking it again would
// take noticeable time, and gain little for others.
bool is_short(const Sizes& sizes);

}  // namespace keywise::python
