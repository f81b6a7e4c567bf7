// Tensors of other libraries without their Python: the part of DLPack's C exchange interface
// (version 1.3) that is used here. https://dmlc.github.io/dlpack/latest/python_spec.html
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <initializer_list>
#include <memory>
#include <new>

#include "../checked.h"
#include "../integers.h"

namespace keywise::dlpack {

constexpr char kExchangeName[] = "dlpack_exchange_api";
constexpr int32_t kCpu = 1;
constexpr uint8_t kInteger = 0;
constexpr uint8_t kFloat = 2;
constexpr uint8_t kBfloat = 4;
constexpr int32_t kMaxAxes = 4;

struct Version {
  uint32_t major;
  uint32_t minor;
};

struct Type {
  uint8_t code;
  uint8_t bits;
  uint16_t lanes;
  bool operator==(const Type& other) const {
    return code == other.code && bits == other.bits && lanes == other.lanes;
  }
};

// Strides count elements.
struct View {
  void* data;
  int32_t device;
  int32_t device_number;
  int32_t axes;
  Type type;
  int64_t* shape;
  int64_t* stride;
  uint64_t offset_bytes;
};

struct Owned {
  Version version;
  void* context;
  void (*free)(Owned*);
  uint64_t flags;
  View view;
};

// What a library offers. Functions return 0, or -1 and set a Python error.
struct Exchange {
  Version version;
  const Exchange* older;
  void (*unused_allocate)();
  void (*unused_own)();
  int (*give)(Owned*, void** object);       // takes the tensor over
  int (*borrow)(void* object, View* view);  // for as long as the object is held; may be null
  void (*unused_stream)();
};

using OwnedTensor = std::unique_ptr<Owned, void (*)(Owned*)>;

// Returns the bytes of contiguous elements. Throws where some strides or their bytes do not fit 64
// bits, also where there is no element.
inline int64_t count_bytes(Type type, std::initializer_list<int64_t> shape) {
  int64_t bytes = type.bits / 8;
  for (const int64_t size : shape) bytes = checked_multiply(bytes, max(size, 1));
  return std::find(shape.begin(), shape.end(), 0) == shape.end() ? bytes : 0;
}

// Returns an uninitialised contiguous tensor. Its description lies before its elements, in the same
// memory.
inline OwnedTensor allocate_tensor(Type type, std::initializer_list<int64_t> shape) {
  struct Header {
    Owned owned;
    int64_t shape[kMaxAxes];
    int64_t stride[kMaxAxes];
  };
  constexpr int64_t kAlignmentBytes = 64;
  constexpr int64_t kHeaderBytes = round_up(sizeof(Header), kAlignmentBytes);
  const int64_t element_bytes = count_bytes(type, shape);
  const int64_t bytes = checked_add(kHeaderBytes, checked_round_up(element_bytes, kAlignmentBytes));
  void* const memory = std::aligned_alloc(size_t(kAlignmentBytes), size_t(bytes));
  if (!memory) throw std::bad_alloc();

  Header* const header = new (memory) Header{};
  std::copy(shape.begin(), shape.end(), header->shape);
  int64_t stride = 1;
  for (size_t axis = shape.size(); axis-- > 0;) {
    header->stride[axis] = stride;
    stride *= max(header->shape[axis], 1);
  }
  View& view = header->owned.view;
  view.data = static_cast<char*>(memory) + kHeaderBytes;
  view.device = kCpu;
  view.axes = int32_t(shape.size());
  view.type = type;
  view.shape = header->shape;
  view.stride = header->stride;
  header->owned.version = {1, 0};
  header->owned.free = [](Owned* self) { std::free(self); };
  return {&header->owned, [](Owned* owned) { owned->free(owned); }};
}

}  // namespace keywise::dlpack
