#include "arrays.h"

#include <algorithm>
#include <new>
#include <string>
#include <utility>

namespace keywise::python {
namespace {

// Never destroyed: Python may be gone when static objects are.
ArrayFunctions* functions = nullptr;

PyObject* intern(const char* name) { return PyUnicode_InternFromString(name); }

// ---- torch tensors ----

// Returns torch.Tensor once torch is imported.
PyTypeObject* find_tensor_type() {
  static PyTypeObject* type = nullptr;
  if (type) return type;
  static PyObject* const module_name = intern("torch");
  const nb::object torch = nb::steal(PyImport_GetModule(module_name));
  if (!torch.is_valid()) {
    PyErr_Clear();
    return nullptr;
  }
  // A torch that is being imported has no Tensor yet.
  nb::object tensor = nb::getattr(torch, "Tensor", nb::none());
  if (!PyType_Check(tensor.ptr())) return nullptr;
  type = reinterpret_cast<PyTypeObject*>(tensor.release().ptr());
  return type;
}

// Returns the exchange table of torch (since 2.10), or null.
const dlpack::Exchange* find_exchange() {
  static const dlpack::Exchange* exchange = nullptr;
  static bool searched = false;
  if (searched) return exchange;
  PyTypeObject* const type = find_tensor_type();
  if (!type) return nullptr;
  searched = true;
  const nb::object capsule = nb::getattr(nb::handle(reinterpret_cast<PyObject*>(type)),
                                         "__dlpack_c_exchange_api__", nb::none());
  if (!PyCapsule_IsValid(capsule.ptr(), dlpack::kExchangeName)) return nullptr;
  const auto* table = static_cast<const dlpack::Exchange*>(
      PyCapsule_GetPointer(capsule.ptr(), dlpack::kExchangeName));
  if (table->version.major == 1 && table->borrow) exchange = table;
  return exchange;
}

Element to_element(const dlpack::Type& type) {
  if (type == dlpack::Type{dlpack::kFloat, 32, 1}) return Element::float32;
  if (type == dlpack::Type{dlpack::kFloat, 16, 1}) return Element::float16;
  if (type == dlpack::Type{dlpack::kBfloat, 16, 1}) return Element::bfloat16;
  return Element::unsupported;
}

bool is_aligned(const void* data, int64_t bytes) {
  return reinterpret_cast<uintptr_t>(data) % uintptr_t(bytes) == 0;
}

// A variable of a module, looked up in the module's dictionary at each call.
class ModuleVariable {
 public:
  ModuleVariable(const char* module, const char* name)
      : module_(intern(module)), name_(intern(name)) {}

  // Returns the value, borrowed; null before the module is imported or where it has no such name.
  PyObject* get() {
    if (!variables_) {
      const nb::object module = nb::steal(PyImport_GetModule(module_));
      if (module.is_valid())
        variables_ = nb::borrow(PyModule_GetDict(module.ptr())).release().ptr();
    }
    PyObject* const value = variables_ ? PyDict_GetItemWithError(variables_, name_) : nullptr;
    if (!value) PyErr_Clear();
    return value;
  }

 private:
  PyObject* module_;
  PyObject* name_;
  PyObject* variables_ = nullptr;  // never released: Python may be gone when static objects are
};

bool is_negative(PyObject* number) {
  return number && PyLong_Check(number) && PyLong_AsLong(number) < 0;
}

// Returns whether torch may know more of a tensor than its elements: in forward-mode
// differentiation, dispatch modes and traces. as_readable_array examines such tensors.
bool is_torch_watching() {
  static ModuleVariable level("torch.autograd.forward_ad", "_current_level");
  static ModuleVariable in_mode("torch.utils._python_dispatch", "_is_in_torch_dispatch_mode");
  static PyObject* const is_tracing =
      nb::object(nb::module_::import_("torch._C").attr("_is_tracing")).release().ptr();
  if (!is_negative(level.get()) || in_mode.get() != Py_False) return true;
  const nb::object tracing = nb::steal(PyObject_CallNoArgs(is_tracing));
  if (!tracing.is_valid()) throw nb::python_error();
  return tracing.ptr() != Py_False;
}

// A method or property of a class of torch, found once, because a lookup takes noticeable time.
class Member {
 public:
  // `type` is held by its module.
  Member(PyTypeObject* type, const char* name)
      : descriptor_(PyObject_GetAttrString(reinterpret_cast<PyObject*>(type), name)) {
    if (!descriptor_) throw nb::python_error();
  }

  // Calls the method without arguments; invalid after an error.
  nb::object call(nb::handle object) const {
    return nb::steal(PyObject_CallOneArg(descriptor_, object.ptr()));
  }
  // Returns the property; invalid after an error.
  nb::object get(nb::handle object) const {
    const descrgetfunc get = Py_TYPE(descriptor_)->tp_descr_get;
    PyObject* const type = reinterpret_cast<PyObject*>(Py_TYPE(object.ptr()));
    return nb::steal(get(descriptor_, object.ptr(), type));
  }

 private:
  PyObject* descriptor_;  // never released: Python may be gone when static objects are
};

// Returns whether a tensor's memory can be read as it is. One that requires gradients must be
// refused, and one with the negative bit set stores its elements with the opposite sign.
bool is_plain(nb::handle tensor) {
  static const Member requires_grad(find_tensor_type(), "requires_grad");
  static const Member is_neg(find_tensor_type(), "is_neg");
  const nb::object wants_gradient = requires_grad.get(tensor);
  if (!wants_gradient.is_valid()) throw nb::python_error();
  if (wants_gradient.ptr() != Py_False) return false;
  const nb::object negated = is_neg.call(tensor);
  if (!negated.is_valid()) throw nb::python_error();
  return negated.ptr() == Py_False;
}

// Returns the bytes from the first element to the end of the last.
int64_t count_bytes(const InputArray& array) {
  int64_t elements = 1;
  for (int axis = 0; axis < 4; ++axis) elements += (array.shape[axis] - 1) * array.stride[axis];
  return elements * bytes_of(to_dtype(array.element));
}

// Returns the address of a tensor's storage; invalid inside transforms, whose tensors have none.
nb::object find_storage_address(nb::handle tensor, nb::object& storage) {
  static const Member untyped_storage(find_tensor_type(), "untyped_storage");
  storage = untyped_storage.call(tensor);
  if (!storage.is_valid()) return {};
  static const Member data_ptr(Py_TYPE(storage.ptr()), "data_ptr");
  return data_ptr.call(storage);
}

// Returns whether all elements lie in the tensor's storage.
bool fits_storage(nb::handle tensor, const InputArray& array) {
  nb::object storage;
  const nb::object address = find_storage_address(tensor, storage);
  if (!address.is_valid()) {
    PyErr_Clear();  // reading it through NumPy says what is wrong
    return false;
  }
  const Py_ssize_t size = PyObject_Size(storage.ptr());
  const uintptr_t begin = PyLong_AsSize_t(address.ptr());
  if (begin == 0) return false;
  const uintptr_t first = reinterpret_cast<uintptr_t>(array.data);
  return first - begin + uint64_t(count_bytes(array)) <= uint64_t(size);
}

// Returns whether a tensor has its elements in memory. Where its storage was freed, or belongs to a
// tensor inside a transform, its address is the offset of a view: a small number. A storage that
// was cut short is found for large tensors only, because asking for its size would slow a small
// call down by 3 %.
bool has_memory(nb::handle tensor, const InputArray& array) {
  constexpr uintptr_t kLargestOffset = uintptr_t(1) << 40;
  constexpr int64_t kLargeBytes = int64_t(1) << 19;
  const bool may_be_offset = reinterpret_cast<uintptr_t>(array.data) < kLargestOffset;
  if (!may_be_offset && count_bytes(array) < kLargeBytes) return true;
  return fits_storage(tensor, array);
}

// Reads a plain tensor of 4 axes that kernels can read where it is; false for any other.
bool read_tensor(nb::handle tensor, HeldArray& held) {
  const dlpack::Exchange* const exchange = find_exchange();
  if (!exchange || !is_plain(tensor)) return false;
  dlpack::View view;
  if (exchange->borrow(tensor.ptr(), &view) != 0) {
    PyErr_Clear();  // reading it through NumPy says what is wrong
    return false;
  }
  InputArray& array = held.array;
  array.element = to_element(view.type);
  array.data = static_cast<const char*>(view.data) + view.offset_bytes;
  if (view.device != dlpack::kCpu || view.axes != 4 || array.element == Element::unsupported)
    return false;
  if (view.stride[3] != 1 && view.shape[3] != 1) return false;
  if (!is_aligned(array.data, bytes_of(to_dtype(array.element)))) return false;
  // Tensors without elements may have any strides.
  if (std::any_of(view.shape, view.shape + 4, [](int64_t size) { return size == 0; })) return false;
  array.axes = view.axes;
  std::copy_n(view.shape, 4, array.shape);
  std::copy_n(view.stride, 4, array.stride);
  if (!has_memory(tensor, array)) return false;
  held.owner = nb::borrow(tensor);
  held.is_tensor = true;
  return true;
}

// ---- NumPy arrays ----

// A buffer of an object, released at the end; its owner holds the memory.
class Buffer {
 public:
  Buffer(nb::handle object, int flags)
      : valid_(PyObject_GetBuffer(object.ptr(), &view_, flags) == 0) {
    if (!valid_) PyErr_Clear();
  }
  ~Buffer() {
    if (valid_) PyBuffer_Release(&view_);
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  explicit operator bool() const { return valid_; }
  const Py_buffer* operator->() const { return &view_; }

 private:
  Py_buffer view_;
  bool valid_;
};

Element to_element(const char* format) {
  if (!format || format[0] == '\0' || format[1] != '\0') return Element::unsupported;
  switch (format[0]) {
    case 'f':
      return Element::float32;
    case 'e':
      return Element::float16;
    case 'd':
      return Element::float64;
    default:
      return Element::unsupported;
  }
}

void set_layout(const Buffer& buffer, InputArray& array) {
  array.data = buffer->buf;
  array.axes = buffer->ndim;
  if (buffer->ndim != 4) return;
  std::copy_n(buffer->shape, 4, array.shape);
  for (int axis = 0; axis < 4; ++axis)
    array.stride[axis] = buffer->strides[axis] / buffer->itemsize;
}

bool is_readable(const Buffer& buffer) {
  if (!is_aligned(buffer->buf, buffer->itemsize)) return false;
  for (int axis = 0; axis < buffer->ndim; ++axis) {
    if (buffer->strides[axis] % buffer->itemsize != 0) return false;
  }
  const int last = buffer->ndim - 1;
  return last < 0 || buffer->shape[last] <= 1 || buffer->strides[last] == buffer->itemsize;
}

// Reads a NumPy array that kernels can read where it is; false for any other object.
bool read_numpy(nb::handle value, HeldArray& held) {
  if (!PyObject_CheckBuffer(value.ptr())) return false;
  const Buffer buffer(value, PyBUF_STRIDED_RO | PyBUF_FORMAT);
  if (!buffer) return false;
  held.array.element = to_element(buffer->format);
  if (held.array.element == Element::unsupported || !is_readable(buffer)) return false;
  set_layout(buffer, held.array);
  held.owner = nb::borrow(value);
  return true;
}

// ---- HostArray ----

bool is_equal(nb::handle text, const char* expected) {
  return PyUnicode_CompareWithASCIIString(text.ptr(), expected) == 0;
}

Element to_element(nb::handle dtype, bool has_scale) {
  if (is_equal(dtype, "float32")) return Element::float32;
  if (is_equal(dtype, "float16")) return Element::float16;
  if (is_equal(dtype, "bfloat16")) return Element::bfloat16;
  if (is_equal(dtype, "float64")) return Element::float64;
  if (is_equal(dtype, "int8") && has_scale) return Element::scaled_int8;
  return Element::unsupported;
}

nb::object get_attribute(nb::handle object, PyObject* name) {
  nb::object attribute = nb::steal(PyObject_GetAttr(object.ptr(), name));
  if (!attribute.is_valid()) throw nb::python_error();
  return attribute;
}

// Reads a HostArray; false where kernels cannot read it in place. One that as_readable_array made
// is readable and not examined.
bool read_host_array(nb::handle value, HeldArray& held, bool is_readable_array) {
  static PyObject* const data_name = intern("data");
  static PyObject* const dtype_name = intern("dtype");
  static PyObject* const scale_name = intern("scale");
  const nb::object data = get_attribute(value, data_name);
  const nb::object scale = get_attribute(value, scale_name);
  const Buffer buffer(data, PyBUF_STRIDED_RO);
  if (!buffer || (!is_readable_array && !is_readable(buffer))) return false;
  set_layout(buffer, held.array);
  held.array.element = to_element(get_attribute(value, dtype_name), !scale.is_none());
  if (!scale.is_none()) {
    const Buffer scales(scale, PyBUF_STRIDED_RO);
    if (!scales || (!is_readable_array && !is_readable(scales))) return false;
    held.array.scales.data = static_cast<const float*>(scales->buf);
    for (int axis = 0; axis < 2; ++axis)
      held.array.scales.stride[axis] = scales->strides[axis] / scales->itemsize;
  }
  held.owner = nb::borrow(value);
  return true;
}

bool is_host_array(nb::handle value) {
  return reinterpret_cast<PyObject*>(Py_TYPE(value.ptr())) == functions->host_array.ptr();
}

PyTypeObject* numpy_type = nullptr;

PyTypeObject* find_numpy_type() { return numpy_type; }

nb::tuple to_tuple(std::initializer_list<int64_t> shape) {
  nb::object sizes = nb::steal(PyTuple_New(Py_ssize_t(shape.size())));
  Py_ssize_t axis = 0;
  for (const int64_t size : shape) PyTuple_SET_ITEM(sizes.ptr(), axis++, PyLong_FromLongLong(size));
  return nb::tuple(sizes);
}

[[noreturn]] void raise_memory_error(const char* name, const char* dtype,
                                     std::initializer_list<int64_t> shape) {
  std::string sizes;
  for (const int64_t size : shape) sizes += (sizes.empty() ? "" : ", ") + std::to_string(size);
  PyErr_Format(PyExc_MemoryError, "%s of shape [%s] and dtype %s must fit into memory", name,
               sizes.c_str(), dtype);
  throw nb::python_error();
}

}  // namespace

void set_array_functions(ArrayFunctions new_functions) {
  // Not at the first call: Python code may run during an import, and call this module again.
  if (!numpy_type) {
    nb::object type = nb::module_::import_("numpy").attr("ndarray");
    numpy_type = reinterpret_cast<PyTypeObject*>(type.release().ptr());
  }
  if (!functions) functions = new ArrayFunctions;
  *functions = std::move(new_functions);
}

ArrayReader::ArrayReader() : reads_tensors_(find_tensor_type() && !is_torch_watching()) {}

HeldArray ArrayReader::read(const std::string& name, nb::handle value) const {
  HeldArray held;
  PyTypeObject* const type = Py_TYPE(value.ptr());
  if (type == find_numpy_type()) {
    if (read_numpy(value, held)) return held;
  } else if (is_host_array(value)) {
    if (read_host_array(value, held, false)) return held;
  } else if (reads_tensors_ && type == find_tensor_type()) {
    if (read_tensor(value, held)) return held;
  }
  held = {};
  const nb::object readable = functions->as_readable_array(name.c_str(), value);
  read_host_array(readable, held, true);
  return held;
}

bool is_torch_imported() { return find_tensor_type() != nullptr; }

Inputs::Inputs(HeldArray query, std::vector<HeldArray> held, std::vector<Chunk> chunks, Sizes sizes,
               Dtype stored_dtype)
    : query_(std::move(query)),
      held_(std::move(held)),
      chunks_(std::move(chunks)),
      sizes_(sizes),
      stored_dtype_(stored_dtype) {}

nb::object HeldArray::like() const {
  if (!is_host_array(owner)) return owner;
  return owner.attr("like");
}

const char* HeldArray::dtype() const {
  switch (array.element) {
    case Element::float16:
      return "float16";
    case Element::bfloat16:
      return "bfloat16";
    case Element::float64:
      return "float64";
    default:
      return "float32";
  }
}

nb::tuple Inputs::collect(size_t side) const {
  nb::list owners;
  for (size_t i = side; i < held_.size(); i += 2) owners.append(held_[i].owner);
  return nb::tuple(owners);
}

float* Results::add_float32(const char* name, std::initializer_list<int64_t> shape) {
  return static_cast<float*>(add(name, {dlpack::kFloat, 32, 1}, "float32", shape));
}

int32_t* Results::add_int32(const char* name, std::initializer_list<int64_t> shape) {
  return static_cast<int32_t*>(add(name, {dlpack::kInteger, 32, 1}, "int32", shape));
}

void* Results::add_output(const char* name, std::initializer_list<int64_t> shape) {
  dlpack::Type type{dlpack::kFloat, 32, 1};
  if (argument_.array.element == Element::float16) type = {dlpack::kFloat, 16, 1};
  if (argument_.array.element == Element::bfloat16) type = {dlpack::kBfloat, 16, 1};
  return add(name, type, argument_.dtype(), shape);
}

void* Results::add(const char* name, dlpack::Type type, const char* dtype,
                   std::initializer_list<int64_t> shape) {
  Result result{name, std::nullopt, nb::object()};
  void* data = nullptr;
  try {
    if (argument_.is_tensor && !as_numpy_) {
      result.tensor = dlpack::allocate_tensor(type, shape);
      data = (*result.tensor)->view.data;
    } else {
      dlpack::count_bytes(type, shape);
      const nb::object like = as_numpy_ ? nb::object(nb::none()) : argument_.like();
      result.array = functions->allocate_result(to_tuple(shape), dtype, like);
      const Buffer buffer(result.array, PyBUF_STRIDED_RO);
      data = buffer->buf;
    }
  } catch (const std::bad_alloc&) {
    raise_memory_error(name, dtype, shape);
  } catch (const nb::python_error& error) {
    // NumPy's or torch's.
    if (!error.matches(PyExc_Exception)) throw;
    raise_memory_error(name, dtype, shape);
  }
  results_.push_back(std::move(result));
  return data;
}

nb::dict Results::take() {
  nb::dict results;
  for (Result& result : results_) {
    nb::object array = std::move(result.array);
    if (result.tensor) {
      void* tensor = nullptr;
      if (find_exchange()->give(result.tensor->release(), &tensor) != 0) throw nb::python_error();
      array = nb::steal(static_cast<PyObject*>(tensor));
    } else if (!as_numpy_) {
      array = functions->to_library(array, argument_.like());
    }
    results[result.name] = array;
  }
  return results;
}

}  // namespace keywise::python
