// The Python face of tpde.h: one function each, under the same name without
// the prefix. It converts arguments, lets other Python threads run while the
// core works, and turns failures into the exceptions of tpde._status. Pointers
// are integers (0 is NULL): the checks of what they point to stand in Python.
//
// The core is opened at run time and not linked: it must be opened with
// RTLD_LAZY, and importing this module must not start the Go runtime.

#include <dlfcn.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <string>
#include <utility>
#include <vector>

#include "tpde.h"

namespace py = pybind11;

namespace {

#define TPDE_FUNCTIONS(X)                                                                    \
  X(abi_version) X(version) X(status_name) X(last_error)                                     \
  X(encode) X(encoded_bytes) X(encoded_copy) X(encoded_free)                                 \
  X(index_read) X(index_records) X(reconstruct) X(scatter_add) X(digest)                     \
  X(source_open) X(source_open_base) X(source_new) X(source_add) X(source_apply) X(source_manifest)              \
  X(source_read) X(source_free) X(pack_start) X(compress_start) X(unpack_start) X(verify_start)                \
  X(parts_open) X(parts_list) X(parts_gather) X(parts_free) X(unpack_supplied_start)         \
  X(job_supply) X(job_wait) X(job_cancel) X(job_report) X(job_free) X(inspect)                             \
  X(text_bytes) X(text_copy) X(text_free)                                                    \
  X(device_search) X(device_info) X(prepare) X(prepared_image_bytes) X(prepared_image)       \
  X(prepared_free) X(gpu_scratch_bytes) X(gpu_reconstruct) X(gpu_verify) X(gpu_scatter_add) \
  X(gpu_quantised_linear) X(gpu_dequantise)

struct Library {
  bool loaded = false;
#define X(name) decltype(&::tpde_##name) name = nullptr;
  TPDE_FUNCTIONS(X)
#undef X
};

Library library;  // filled once, under the GIL

// ---- failures ----------------------------------------------------------

[[noreturn]] void raise(int32_t status, const std::string &text) {
  py::object exception = py::module_::import("tpde._status").attr("EXCEPTIONS")[py::int_(status)];
  // The core cuts nothing off; names and paths in its text may be any bytes.
  py::object message = py::reinterpret_steal<py::object>(
      PyUnicode_DecodeUTF8(text.data(), static_cast<Py_ssize_t>(text.size()), "replace"));
  PyErr_SetObject(exception.ptr(), message.ptr());
  throw py::error_already_set();
}

const Library &core() {
  if (!library.loaded) raise(TPDE_INTERNAL, "internal: the core is not loaded, expected tpde._core.core() to be called first");
  return library;
}

void check(int32_t status) {
  if (status != TPDE_OK) raise(status, core().last_error());
}

// Calls f with the library and without the GIL, and raises its failure. Quick
// calls do without: releasing the GIL would cost more than they do.
template <typename F>
void run(F &&f) {
  const Library &lib = core();
  int32_t status;
  {
    py::gil_scoped_release unlocked;
    status = f(lib);
  }
  check(status);
}

// ---- arguments ---------------------------------------------------------

template <typename T = void>
T *pointer(uintptr_t address) {
  return reinterpret_cast<T *>(address);
}

// A text for C, which ends at the first zero byte.
const char *c_text(const char *what, const std::string &s) {
  if (s.find('\0') != std::string::npos) raise(TPDE_ARGUMENT, std::string("argument: ") + what + " contains a zero byte");
  return s.c_str();
}

// A path as the system has it: str, bytes or os.PathLike, in any encoding.
std::string path(const py::object &p) {
  PyObject *encoded = nullptr;
  if (!PyUnicode_FSConverter(p.ptr(), &encoded)) throw py::error_already_set();  // also refuses zero bytes
  return py::reinterpret_steal<py::bytes>(encoded);
}

// A list of paths and the array of pointers that C wants.
struct Paths {
  std::vector<std::string> texts;
  std::vector<const char *> pointers;

  explicit Paths(const py::sequence &list) {
    for (const auto &p : list) texts.push_back(path(py::reinterpret_borrow<py::object>(p)));
    for (const auto &t : texts) pointers.push_back(t.c_str());
  }
  const char *const *data() const { return pointers.data(); }
  uint32_t size() const { return static_cast<uint32_t>(pointers.size()); }
};

// Takes the text of a handle and frees it.
py::str take_text(tpde_handle text) {
  const Library &lib = core();
  std::string s;
  uint64_t bytes = 0;
  int32_t status = lib.text_bytes(&bytes, text);
  if (status == TPDE_OK) {
    s.resize(bytes);
    status = lib.text_copy(s.data(), bytes, text);
  }
  std::string failure = status == TPDE_OK ? "" : lib.last_error();
  lib.text_free(text);
  if (status != TPDE_OK) raise(status, failure);
  return py::str(s);
}

// ---- library -----------------------------------------------------------

template <typename F>
F resolve(void *handle, const std::string &file, const char *symbol) {
  void *address = dlsym(handle, symbol);
  if (address == nullptr)
    raise(TPDE_VERSION, "version: " + file + " has no " + symbol + ", expected the core that this module was built with");
  return reinterpret_cast<F>(address);
}

void load(const py::object &file) {
  if (library.loaded) return;
  const std::string name = path(file);
  void *handle = dlopen(name.c_str(), RTLD_LAZY | RTLD_LOCAL);
  if (handle == nullptr) raise(TPDE_UNSUPPORTED, std::string("unsupported: cannot open the tpde core: ") + dlerror());
  Library found;
#define X(function) found.function = resolve<decltype(found.function)>(handle, name, "tpde_" #function);
  TPDE_FUNCTIONS(X)
#undef X
  if (found.abi_version() != TPDE_ABI_VERSION)
    raise(TPDE_VERSION, "version: " + name + " has ABI version " + std::to_string(found.abi_version()) + ", expected " +
                            std::to_string(TPDE_ABI_VERSION));
  found.loaded = true;
  library = found;  // never closed: a Go runtime cannot be unloaded
}

py::str version() { return core().version(); }

// ---- one tensor --------------------------------------------------------

tpde_handle encode(uintptr_t base, uint64_t base_bytes, uintptr_t target, uint64_t target_bytes, uint32_t dtype,
                   const std::vector<uint64_t> &shape, uint32_t codec, uint32_t residual, uint32_t level,
                   uint32_t workers, uint64_t num_chunks, uint64_t chunk_words) {
  const tpde_encode_options options = {sizeof options, codec, residual, level, workers, 0, num_chunks, chunk_words};
  tpde_handle encoded = 0;
  run([&](const Library &lib) {
    return lib.encode(&encoded, pointer(base), base_bytes, pointer(target), target_bytes, dtype, shape.data(),
                      static_cast<uint32_t>(shape.size()), &options);
  });
  return encoded;
}

std::pair<uint64_t, uint64_t> encoded_bytes(tpde_handle encoded) {
  uint64_t index_bytes = 0, blob_bytes = 0;
  check(core().encoded_bytes(&index_bytes, &blob_bytes, encoded));
  return {index_bytes, blob_bytes};
}

void encoded_copy(uintptr_t index, uint64_t index_cap, uintptr_t blob, uint64_t blob_cap, tpde_handle encoded) {
  run([&](const Library &lib) { return lib.encoded_copy(pointer(index), index_cap, pointer(blob), blob_cap, encoded); });
}

void encoded_free(tpde_handle encoded) { check(core().encoded_free(encoded)); }

py::bytes digest_bytes(const uint8_t (&digest)[16]) {
  return py::bytes(reinterpret_cast<const char *>(digest), sizeof digest);
}

py::dict index_read(uintptr_t index, uint64_t index_bytes) {
  tpde_index_info info;
  info.struct_bytes = sizeof info;
  run([&](const Library &lib) { return lib.index_read(&info, pointer(index), index_bytes); });
  py::dict d;
  d["dtype"] = info.dtype;
  d["codec"] = info.codec;
  d["residual"] = info.residual;
  d["has_base"] = info.has_base != 0;
  d["shape"] = std::vector<uint64_t>(info.shape, info.shape + info.ndim);
  d["words"] = info.words;
  d["target_bytes"] = info.target_bytes;
  d["blob_bytes"] = info.blob_bytes;
  d["chunks"] = info.chunks;
  d["deltas"] = info.deltas;
  d["base_digest"] = digest_bytes(info.base_digest);
  d["target_digest"] = digest_bytes(info.target_digest);
  return d;
}

void index_records(uintptr_t dst, uint64_t dst_cap, uintptr_t index, uint64_t index_bytes) {
  run([&](const Library &lib) { return lib.index_records(pointer(dst), dst_cap, pointer(index), index_bytes); });
}

void reconstruct(uintptr_t dst, uint64_t dst_cap, uintptr_t base, uint64_t base_bytes, uintptr_t index,
                 uint64_t index_bytes, uintptr_t blob, uint64_t blob_bytes, uint32_t flags, uint32_t workers) {
  run([&](const Library &lib) {
    return lib.reconstruct(pointer(dst), dst_cap, pointer(base), base_bytes, pointer(index), index_bytes,
                           pointer(blob), blob_bytes, flags, workers);
  });
}

void scatter_add(uintptr_t dst, uint64_t dst_cap, uintptr_t base, uint64_t base_bytes, uint32_t dtype,
                 uintptr_t indices, uintptr_t values, uint64_t deltas, uintptr_t chunk_starts, uint64_t num_chunks,
                 uint32_t workers) {
  run([&](const Library &lib) {
    return lib.scatter_add(pointer(dst), dst_cap, pointer(base), base_bytes, dtype, pointer<const int64_t>(indices),
                           pointer(values), deltas, pointer<const int64_t>(chunk_starts), num_chunks, workers);
  });
}

py::bytes digest(uintptr_t data, uint64_t data_bytes, uint32_t workers) {
  uint8_t sum[16];
  run([&](const Library &lib) { return lib.digest(sum, sizeof sum, pointer(data), data_bytes, workers); });
  return digest_bytes(sum);
}

// ---- GPUs --------------------------------------------------------------

void device_search(const py::sequence &folders) {
  const Paths list(folders);
  check(core().device_search(list.data(), list.size()));
}

py::str device_info() {
  tpde_handle text = 0;
  run([&](const Library &lib) { return lib.device_info(&text); });
  return take_text(text);
}

tpde_handle prepare(uintptr_t index, uint64_t index_bytes) {
  tpde_handle prepared = 0;
  run([&](const Library &lib) { return lib.prepare(&prepared, pointer(index), index_bytes); });
  return prepared;
}

uint64_t prepared_image_bytes(tpde_handle prepared) {
  uint64_t bytes = 0;
  check(core().prepared_image_bytes(&bytes, prepared));
  return bytes;
}

void prepared_image(uintptr_t dst, uint64_t dst_cap, tpde_handle prepared) {
  run([&](const Library &lib) { return lib.prepared_image(pointer(dst), dst_cap, prepared); });
}

void prepared_free(tpde_handle prepared) { check(core().prepared_free(prepared)); }

// (prepared, base, dst, blob, image, status, flags)
using Item = std::array<uint64_t, 7>;

std::vector<tpde_gpu_item> gpu_items(const std::vector<Item> &list) {
  std::vector<tpde_gpu_item> items;
  items.reserve(list.size());
  for (const auto &[prepared, base, dst, blob, image, status, flags] : list)
    items.push_back({prepared, pointer(base), pointer(dst), pointer(blob), pointer(image), pointer<uint32_t>(status),
                     flags, 0});
  return items;
}

uint64_t gpu_scratch_bytes(const std::vector<Item> &list) {
  const auto items = gpu_items(list);
  uint64_t bytes = 0;
  run([&](const Library &lib) {
    return lib.gpu_scratch_bytes(&bytes, items.data(), static_cast<uint32_t>(items.size()));
  });
  return bytes;
}

void gpu_reconstruct(const std::vector<Item> &list, uintptr_t scratch, uint64_t scratch_bytes, uintptr_t stream) {
  const auto items = gpu_items(list);
  run([&](const Library &lib) {
    return lib.gpu_reconstruct(items.data(), static_cast<uint32_t>(items.size()), pointer(scratch), scratch_bytes,
                               pointer(stream));
  });
}

void gpu_verify(const std::vector<Item> &list, uintptr_t stream) {
  const auto items = gpu_items(list);
  run([&](const Library &lib) {
    return lib.gpu_verify(items.data(), static_cast<uint32_t>(items.size()), pointer(stream));
  });
}

void gpu_scatter_add(uintptr_t dst, uintptr_t base, uint64_t elements, uint32_t dtype, uintptr_t indices,
                     uintptr_t values, uint64_t deltas, uintptr_t bad, uintptr_t stream) {
  run([&](const Library &lib) {
    return lib.gpu_scatter_add(pointer(dst), pointer(base), elements, dtype, pointer<const int64_t>(indices),
                               pointer(values), deltas, pointer<uint32_t>(bad), pointer(stream));
  });
}

// packed, scale, zero, code, group, kind, bits, scale_dtype, dtype: tpde_quantised
using Quantised = std::array<uint64_t, 9>;

tpde_quantised quantised(const Quantised &q) {
  return {pointer(q[0]), pointer(q[1]), pointer(q[2]), pointer(q[3]), q[4],
          static_cast<uint32_t>(q[5]), static_cast<uint32_t>(q[6]), static_cast<uint32_t>(q[7]),
          static_cast<uint32_t>(q[8])};
}

void gpu_quantised_linear(uintptr_t y, uintptr_t x, uint64_t x_stride, uint64_t rows, const Quantised &weight,
                          uint64_t outs, uint64_t ins, uintptr_t bias, uintptr_t stream) {
  const tpde_quantised q = quantised(weight);
  run([&](const Library &lib) {
    return lib.gpu_quantised_linear(pointer(y), pointer(x), x_stride, rows, &q, outs, ins, pointer(bias),
                                    pointer(stream));
  });
}

void gpu_dequantise(uintptr_t dst, const Quantised &tensor, uint64_t elements, uint64_t first, uint64_t count,
                    uintptr_t stream) {
  const tpde_quantised q = quantised(tensor);
  run([&](const Library &lib) {
    return lib.gpu_dequantise(pointer(dst), &q, elements, first, count, pointer(stream));
  });
}

// ---- checkpoints -------------------------------------------------------

tpde_handle source_open(const py::object &file) {
  const std::string name = path(file);
  tpde_handle source = 0;
  run([&](const Library &lib) { return lib.source_open(&source, name.c_str()); });
  return source;
}

tpde_handle source_open_base(const py::object &folder) {
  const std::string name = path(folder);
  tpde_handle source = 0;
  run([&](const Library &lib) { return lib.source_open_base(&source, name.c_str()); });
  return source;
}

tpde_handle source_new(const std::string &label) {
  const char *text = c_text("label", label);
  tpde_handle source = 0;
  check(core().source_new(&source, text));
  return source;
}

void source_add(tpde_handle source, const std::string &name, uint32_t dtype, const std::vector<uint64_t> &shape,
                uintptr_t data, uint64_t data_bytes) {
  const char *text = c_text("name", name);
  check(core().source_add(source, text, dtype, shape.data(), static_cast<uint32_t>(shape.size()), pointer(data),
                          data_bytes));
}

tpde_handle source_apply(tpde_handle base, const py::sequence &deltas) {
  const Paths list(deltas);
  tpde_handle source = 0;
  run([&](const Library &lib) { return lib.source_apply(&source, base, list.data(), list.size()); });
  return source;
}

py::str source_manifest(tpde_handle source) {
  tpde_handle text = 0;
  run([&](const Library &lib) { return lib.source_manifest(&text, source); });
  return take_text(text);
}

void source_read(uintptr_t dst, uint64_t dst_cap, tpde_handle source, const std::string &name, uint32_t workers) {
  const char *text = c_text("name", name);
  run([&](const Library &lib) { return lib.source_read(pointer(dst), dst_cap, source, text, workers); });
}

void source_free(tpde_handle source) {
  run([&](const Library &lib) { return lib.source_free(source); });
}

tpde_handle parts_open(tpde_handle source) {
  tpde_handle parts = 0;
  check(core().parts_open(&parts, source));
  return parts;
}

py::str parts_list(tpde_handle parts) {
  tpde_handle text = 0;
  run([&](const Library &lib) { return lib.parts_list(&text, parts); });
  return take_text(text);
}

// (part, offset, bytes, to)
using Span = std::array<uint64_t, 4>;

void parts_gather(uintptr_t dst, uint64_t dst_cap, tpde_handle parts, const std::vector<Span> &list, uint32_t workers) {
  std::vector<tpde_span> spans;
  spans.reserve(list.size());
  for (const auto &[part, offset, bytes, to] : list) spans.push_back({part, offset, bytes, to});
  run([&](const Library &lib) {
    return lib.parts_gather(pointer(dst), dst_cap, parts, spans.data(), spans.size(), workers);
  });
}

void parts_free(tpde_handle parts) { check(core().parts_free(parts)); }

tpde_handle pack_start(tpde_handle base, tpde_handle target, const py::object &out, const std::string &options) {
  const std::string name = path(out);
  const char *json = c_text("options", options);
  tpde_handle job = 0;
  run([&](const Library &lib) { return lib.pack_start(&job, base, target, name.c_str(), json); });
  return job;
}

tpde_handle compress_start(tpde_handle target, const py::object &out, const std::string &options) {
  const std::string name = path(out);
  const char *json = c_text("options", options);
  tpde_handle job = 0;
  run([&](const Library &lib) { return lib.compress_start(&job, target, name.c_str(), json); });
  return job;
}

tpde_handle unpack_start(tpde_handle base, const py::sequence &deltas, const py::object &out,
                         const std::string &options) {
  const Paths list(deltas);
  const std::string name = path(out);
  const char *json = c_text("options", options);
  tpde_handle job = 0;
  run([&](const Library &lib) {
    return lib.unpack_start(&job, base, list.data(), list.size(), name.c_str(), json);
  });
  return job;
}

tpde_handle unpack_supplied_start(tpde_handle base, const py::sequence &deltas, const py::object &out,
                                  const std::string &options) {
  const Paths list(deltas);
  const std::string name = path(out);
  const char *json = c_text("options", options);
  tpde_handle job = 0;
  run([&](const Library &lib) {
    return lib.unpack_supplied_start(&job, base, list.data(), list.size(), name.c_str(), json);
  });
  return job;
}

void job_supply(tpde_handle job, const std::string &name, uintptr_t data, uint64_t data_bytes) {
  const char *text = c_text("name", name);
  run([&](const Library &lib) { return lib.job_supply(job, text, pointer(data), data_bytes); });
}

tpde_handle verify_start(tpde_handle base, const py::sequence &deltas, tpde_handle target,
                         const std::string &options) {
  const Paths list(deltas);
  const char *json = c_text("options", options);
  tpde_handle job = 0;
  run([&](const Library &lib) { return lib.verify_start(&job, base, list.data(), list.size(), target, json); });
  return job;
}

py::tuple job_wait(tpde_handle job, uint32_t timeout_ms) {
  uint64_t done_bytes = 0, total_bytes = 0;
  bool finished = true;
  run([&](const Library &lib) {
    const int32_t status = lib.job_wait(&done_bytes, &total_bytes, job, timeout_ms);
    finished = status != TPDE_PENDING;
    return finished ? status : static_cast<int32_t>(TPDE_OK);
  });
  return py::make_tuple(finished, done_bytes, total_bytes);
}

void job_cancel(tpde_handle job) { check(core().job_cancel(job)); }

py::str job_report(tpde_handle job) {
  tpde_handle text = 0;
  run([&](const Library &lib) { return lib.job_report(&text, job); });
  return take_text(text);
}

void job_free(tpde_handle job) {
  run([&](const Library &lib) { return lib.job_free(job); });
}

py::str inspect(const py::object &delta) {
  const std::string name = path(delta);
  tpde_handle text = 0;
  run([&](const Library &lib) { return lib.inspect(&text, name.c_str()); });
  return take_text(text);
}

}  // namespace

PYBIND11_MODULE(_binding, m) {
  using py::literals::operator""_a;
  m.doc() = "tpde.h for Python. Use it through tpde._core.core(), which loads the core first.";
  m.attr("ABI_VERSION") = TPDE_ABI_VERSION;
  m.attr("SKIP_BASE_DIGEST") = TPDE_SKIP_BASE_DIGEST;
  m.attr("SKIP_TARGET_DIGEST") = TPDE_SKIP_TARGET_DIGEST;
  m.attr("GPU_QUANTISED_BASE") = TPDE_GPU_QUANTISED_BASE;
  m.attr("GPU_VERIFIED_BLOB") = TPDE_GPU_VERIFIED_BLOB;

  m.def("load", &load, "path"_a, "Opens the core; again: does nothing.");
  m.def("version", &version);

  m.def("encode", &encode, "base_ptr"_a, "base_bytes"_a, "target_ptr"_a, "target_bytes"_a, "dtype"_a, "shape"_a,
        "codec"_a = 0, "residual"_a = 0, "level"_a = 0, "workers"_a = 0, "num_chunks"_a = 0, "chunk_words"_a = 0);
  m.def("encoded_bytes", &encoded_bytes, "encoded"_a);
  m.def("encoded_copy", &encoded_copy, "index_ptr"_a, "index_cap"_a, "blob_ptr"_a, "blob_cap"_a, "encoded"_a);
  m.def("encoded_free", &encoded_free, "encoded"_a);
  m.def("index_read", &index_read, "index_ptr"_a, "index_bytes"_a);
  m.def("index_records", &index_records, "dst_ptr"_a, "dst_cap"_a, "index_ptr"_a, "index_bytes"_a);
  m.def("reconstruct", &reconstruct, "dst_ptr"_a, "dst_cap"_a, "base_ptr"_a, "base_bytes"_a, "index_ptr"_a,
        "index_bytes"_a, "blob_ptr"_a, "blob_bytes"_a, "flags"_a = 0, "workers"_a = 0);
  m.def("scatter_add", &scatter_add, "dst_ptr"_a, "dst_cap"_a, "base_ptr"_a, "base_bytes"_a, "dtype"_a,
        "indices_ptr"_a, "values_ptr"_a, "deltas"_a, "chunk_starts_ptr"_a, "num_chunks"_a, "workers"_a = 0);
  m.def("digest", &digest, "data_ptr"_a, "data_bytes"_a, "workers"_a = 0);

  m.def("device_search", &device_search, "folders"_a);
  m.def("device_info", &device_info);
  m.def("prepare", &prepare, "index_ptr"_a, "index_bytes"_a);
  m.def("prepared_image_bytes", &prepared_image_bytes, "prepared"_a);
  m.def("prepared_image", &prepared_image, "dst_ptr"_a, "dst_cap"_a, "prepared"_a);
  m.def("prepared_free", &prepared_free, "prepared"_a);
  m.def("gpu_scratch_bytes", &gpu_scratch_bytes, "items"_a);
  m.def("gpu_reconstruct", &gpu_reconstruct, "items"_a, "scratch_ptr"_a, "scratch_bytes"_a, "stream"_a);
  m.def("gpu_verify", &gpu_verify, "items"_a, "stream"_a);
  m.def("gpu_scatter_add", &gpu_scatter_add, "dst_ptr"_a, "base_ptr"_a, "elements"_a, "dtype"_a, "indices_ptr"_a,
        "values_ptr"_a, "deltas"_a, "bad_ptr"_a, "stream"_a);
  m.def("gpu_quantised_linear", &gpu_quantised_linear, "y_ptr"_a, "x_ptr"_a, "x_stride"_a, "rows"_a, "weight"_a,
        "outs"_a, "ins"_a, "bias_ptr"_a, "stream"_a);
  m.def("gpu_dequantise", &gpu_dequantise, "dst_ptr"_a, "tensor"_a, "elements"_a, "first"_a, "count"_a, "stream"_a);

  m.def("source_open", &source_open, "path"_a);
  m.def("source_open_base", &source_open_base, "folder"_a);
  m.def("source_new", &source_new, "label"_a);
  m.def("source_add", &source_add, "source"_a, "name"_a, "dtype"_a, "shape"_a, "data_ptr"_a, "data_bytes"_a);
  m.def("source_apply", &source_apply, "base"_a, "deltas"_a);
  m.def("source_manifest", &source_manifest, "source"_a);
  m.def("source_read", &source_read, "dst_ptr"_a, "dst_cap"_a, "source"_a, "name"_a, "workers"_a = 0);
  m.def("source_free", &source_free, "source"_a);

  m.def("parts_open", &parts_open, "source"_a);
  m.def("parts_list", &parts_list, "parts"_a);
  m.def("parts_gather", &parts_gather, "dst_ptr"_a, "dst_cap"_a, "parts"_a, "spans"_a, "workers"_a = 0);
  m.def("parts_free", &parts_free, "parts"_a);

  m.def("pack_start", &pack_start, "base"_a, "target"_a, "out_path"_a, "options"_a = "{}");
  m.def("compress_start", &compress_start, "target"_a, "out_path"_a, "options"_a = "{}");
  m.def("unpack_start", &unpack_start, "base"_a, "deltas"_a, "out_path"_a, "options"_a = "{}");
  m.def("unpack_supplied_start", &unpack_supplied_start, "base"_a, "deltas"_a, "out_path"_a, "options"_a = "{}");
  m.def("job_supply", &job_supply, "job"_a, "name"_a, "data_ptr"_a, "data_bytes"_a);
  m.def("verify_start", &verify_start, "base"_a, "deltas"_a, "target"_a = 0, "options"_a = "{}");
  m.def("job_wait", &job_wait, "job"_a, "timeout_ms"_a);
  m.def("job_cancel", &job_cancel, "job"_a);
  m.def("job_report", &job_report, "job"_a);
  m.def("job_free", &job_free, "job"_a);
  m.def("inspect", &inspect, "path"_a);
}
