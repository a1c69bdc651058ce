#include <csetjmp>
#include <cstddef>
#include <cstdio>

#include <jpeglib.h>  // needs cstddef and cstdio before it
#include <jerror.h>   // needs jpeglib.h before it: its numbers follow the library's version

#include "decode.h"
#include "error.h"
#include "orientation.h"

#ifndef LIBJPEG_TURBO_VERSION
#error "libjpeg-turbo is wanted, as in Pillow (Debian: libjpeg62-turbo-dev); other libjpegs give other pixels"
#endif

namespace edge {
namespace {

constexpr int kMaxScans = 100;                // of a progressive file; usual are 10, and each goes over the whole image
constexpr long kMaxMemory = 1'000'000'000;  // of libjpeg: the coefficients of a progressive file, two bytes each

// libjpeg's own fields come first: it knows no others.
struct ErrorManager {
  jpeg_error_mgr base;
  std::jmp_buf jump;
  bool cut_short;
  char message[JMSG_LENGTH_MAX];
};

[[noreturn]] void leave(j_common_ptr jpeg) {
  auto& error = *reinterpret_cast<ErrorManager*>(jpeg->err);
  error.base.format_message(jpeg, error.message);
  error.cut_short = error.base.msg_code == JWRN_JPEG_EOF;
  std::longjmp(error.jump, 1);
}

// libjpeg only warns where pixels are lost, and goes on with gray ones.
void leave_if_damaged(j_common_ptr jpeg, int level) {
  if (level >= 0) return;
  switch (jpeg->err->msg_code) {
    case JWRN_JPEG_EOF:
    case JWRN_HIT_MARKER:
    case JWRN_HUFF_BAD_CODE:
    case JWRN_ARITH_BAD_CODE:
    case JWRN_MUST_RESYNC:
    case JWRN_BOGUS_PROGRESSION:
      leave(jpeg);
    default:
      break;  // odd, and whole
  }
}

void leave_after_many_scans(j_common_ptr jpeg) {
  if (reinterpret_cast<j_decompress_ptr>(jpeg)->input_scan_number <= kMaxScans) return;
  auto& error = *reinterpret_cast<ErrorManager*>(jpeg->err);
  std::snprintf(error.message, sizeof error.message, "more than %d scans", kMaxScans);
  std::longjmp(error.jump, 1);
}

class JpegReader {
 public:
  JpegReader(const Bytes& bytes, const std::string& file) : bytes_(bytes), file_(file) {
    jpeg_.err = jpeg_std_error(&error_.base);
    error_.base.error_exit = leave;
    error_.base.emit_message = leave_if_damaged;
    progress_.progress_monitor = leave_after_many_scans;
  }
  JpegReader(const JpegReader&) = delete;
  JpegReader& operator=(const JpegReader&) = delete;
  ~JpegReader() { jpeg_destroy_decompress(&jpeg_); }

  Image read() {
    guard([this] { read_header(); });
    Image image;
    image.size = {jpeg_.image_height, jpeg_.image_width};
    check_image_size(image.size, file_);
    if (jpeg_.num_components == 4) throw Error(file_ + " is in CMYK, the colours of a printer; convert it to RGB, or use run.py");
    if (jpeg_.num_components != 1 && jpeg_.num_components != 3) {
      throw Error(file_ + " has " + std::to_string(jpeg_.num_components) + " channels; accepted are gray and colour");
    }
    if (jpeg_.data_precision != 8) throw Error(file_ + " has " + std::to_string(jpeg_.data_precision) + " bits a sample; accepted are 8");
    // a block of 8x8 takes a bit at least (except in arithmetic coding): a file of fewer would only cost memory
    if (!jpeg_.arith_code && image.size.height * image.size.width / 512 > bytes_.size()) throw Error(file_ + " is cut short");
    const unsigned orientation = read_orientation();
    image.channels = static_cast<std::size_t>(jpeg_.num_components);
    image.pixels.resize(image.size.height * image.size.width * image.channels);
    guard([this, &image] { read_pixels(image); });
    return apply_orientation(std::move(image), orientation);
  }

 private:
  // libjpeg leaves by longjmp: a step must hold nothing that has a destructor.
  template <typename Step>
  void guard(const Step& step) {
    if (setjmp(error_.jump)) {
      throw Error(file_ + (error_.cut_short ? std::string(" is cut short") : std::string(" is damaged: ") + error_.message));
    }
    step();
  }

  void read_header() {
    jpeg_create_decompress(&jpeg_);
    jpeg_.mem->max_memory_to_use = kMaxMemory;
    jpeg_.progress = &progress_;
    jpeg_mem_src(&jpeg_, bytes_.data(), static_cast<unsigned long>(bytes_.size()));
    jpeg_save_markers(&jpeg_, JPEG_APP0 + 1, 0xffff);  // EXIF and XMP
    jpeg_read_header(&jpeg_, TRUE);
  }

  void read_pixels(Image& image) {
    jpeg_.out_color_space = image.channels == 1 ? JCS_GRAYSCALE : JCS_RGB;
    jpeg_.dct_method = JDCT_ISLOW;  // this and the next are the defaults that Pillow uses
    jpeg_.do_fancy_upsampling = TRUE;
    jpeg_start_decompress(&jpeg_);
    while (jpeg_.output_scanline < jpeg_.output_height) {
      JSAMPROW row = image.pixels.data() + jpeg_.output_scanline * image.size.width * image.channels;
      jpeg_read_scanlines(&jpeg_, &row, 1);
    }
    jpeg_finish_decompress(&jpeg_);
  }

  unsigned read_orientation() const {
    static const std::string exif_start("Exif\0\0", 6), xmp_start("http://ns.adobe.com/xap/1.0/\0", 29);
    Bytes exif;
    std::string xmp;
    for (jpeg_saved_marker_ptr marker = jpeg_.marker_list; marker; marker = marker->next) {
      const std::string data(marker->data, marker->data + marker->data_length);
      if (data.compare(0, exif_start.size(), exif_start) == 0) {  // what does not fit into one marker goes on in the next
        exif.insert(exif.end(), data.begin() + (exif.empty() ? 0 : 6), data.end());
      }
      if (data.compare(0, xmp_start.size(), xmp_start) == 0) xmp = data.substr(xmp_start.size());
    }
    return edge::read_orientation(exif, xmp, file_);
  }

  const Bytes& bytes_;
  const std::string& file_;
  jpeg_decompress_struct jpeg_{};
  ErrorManager error_{};
  jpeg_progress_mgr progress_{};
};

}  // namespace

Image decode_jpeg(const Bytes& bytes, const std::string& file) { return JpegReader(bytes, file).read(); }

}  // namespace edge
