// The functions of a target as a table, in one place for all targets.
#pragma once

#include "backward_task.h"
#include "forward.h"
#include "gradient_output.h"
#include "gradient_rows.h"
#include "key_mass.h"
#include "limits.h"
#include "merge.h"
#include "output.h"
#include "pack.h"
#include "quantised_product.h"
#include "simd.h"
#include "target.h"

namespace keywise::KEYWISE_TARGET {

static constexpr Target make_target(const char* name) {
  Target target{};
  target.name = name;
  target.has_bf16_dot = kHasBf16Dot;
  target.tile_rows = kTileRows;
  target.pack_head = pack_head;
  target.forward = forward_task;
  target.merge = merge_states;
  target.write_results = write_results;
  target.has_tiny_values = has_tiny_values;
  target.accumulate_key_mass = accumulate_key_mass;
  target.prepare_gradient_rows = prepare_gradient_rows;
  target.add_gradients = add_gradients;
  target.write_query_gradients = write_query_gradients;
  target.write_key_gradients = write_key_gradients;
  target.round_inputs = round_inputs;
  target.multiply_rows = multiply_rows;
  target.dequantise_rows = dequantise_rows;
  target.multiply_adds = multiply_adds;
  target.add_up = add_up;
  return target;
}

}  // namespace keywise::KEYWISE_TARGET
