// Tensors of other libraries without their Python: the part of DLPack's C exchange interface (version 1.3) that is used
// here. https://dmlc.github.io/dlpack/latest/python_spec.html
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <initializer_list>
#include <memory>
#include <new>

#include "core.h"

namespace keywise::dlpack {

constexpr char kExchangeName[] = "dlpack_exchange_api";
constexpr int32_t kCpu = 1;
constexpr uint8_t kInteger = 0, kFloat = 2, kBfloat = 4;
constexpr int32_t kMostAxes = 4;

struct Version {
  uint32_t major, minor;
};

struct Type {
  uint8_t code, bits;
  uint16_t lanes;
  bool operator==(const Type& other) const { return code == other.code && bits == other.bits && lanes == other.lanes; }
};

// Strides count elements.
struct View {
  void* data;
  int32_t device, device_number;
  int32_t axes;
  Type type;
  int64_t *shape, *stride;
  uint64_t offset_bytes;
};

struct Owned {
  Version version;
  void* context;
  void (*free)(Owned*);
  uint64_t flags;
  View view;
};

// What a library offers. Functions give 0, or -1 and set a Python error.
struct Exchange {
  Version version;
  const Exchange* older;
  void (*unused_allocate)();
  void (*unused_own)();
  int (*give)(Owned*, void** object);       // takes the tensor over
  int (*borrow)(void* object, View* view);  // for as long as the object is held; may be null
  void (*unused_stream)();
};

using Made = std::unique_ptr<Owned, void (*)(Owned*)>;

// An uninitialised contiguous tensor; what describes it lies before its elements, in the same memory.
inline Made make(Type type, std::initializer_list<int64_t> shape) {
  struct Head {
    Owned owned;
    int64_t shape[kMostAxes], stride[kMostAxes];
  };
  constexpr int64_t kHeadBytes = round_up(sizeof(Head), 64);
  int64_t bytes = type.bits / 8;
  for (const int64_t size : shape) bytes *= size;
  void* const memory = std::aligned_alloc(64, std::size_t(kHeadBytes + round_up(bytes, 64)));
  if (!memory) throw std::bad_alloc();
  Head* const head = new (memory) Head{};
  const int32_t axes = int32_t(shape.size());
  std::copy(shape.begin(), shape.end(), head->shape);
  int64_t step = 1;
  for (int axis = axes - 1; axis >= 0; step *= head->shape[axis--]) head->stride[axis] = step;
  head->owned.version = {1, 0};
  head->owned.free = [](Owned* self) { std::free(self); };
  head->owned.view = {static_cast<char*>(memory) + kHeadBytes, kCpu, 0, axes, type, head->shape, head->stride, 0};
  return {&head->owned, [](Owned* owned) { owned->free(owned); }};
}

}  // namespace keywise::dlpack
