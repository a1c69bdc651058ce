#include <png.h>

#include <algorithm>
#include <cctype>
#include <csetjmp>
#include <cstdio>
#include <cstring>

#include "decode.h"
#include "error.h"
#include "orientation.h"

namespace edge {
namespace {

// The bytes that libpng reads, and its first error.
struct Source {
  const std::uint8_t* data;
  std::size_t left;
  bool cut_short;
  char message[128];
};

void read_source(png_structp png, png_bytep to, std::size_t length) {
  auto& source = *static_cast<Source*>(png_get_io_ptr(png));
  source.cut_short = length > source.left;
  if (source.cut_short) png_error(png, "cut short");
  std::memcpy(to, source.data, length);
  source.data += length, source.left -= length;
}

[[noreturn]] void keep_error(png_structp png, png_const_charp message) {
  auto& source = *static_cast<Source*>(png_get_error_ptr(png));
  std::snprintf(source.message, sizeof source.message, "%s", message);
  png_longjmp(png, 1);
}

void ignore_warning(png_structp, png_const_charp) {}

class PngReader {
 public:
  PngReader(const Bytes& bytes, const std::string& file)
      : file_(file), bytes_(bytes.size()), source_{bytes.data(), bytes.size(), false, ""},
        png_(png_create_read_struct(PNG_LIBPNG_VER_STRING, &source_, keep_error, ignore_warning)),
        info_(png_ ? png_create_info_struct(png_) : nullptr) {
    if (!info_) {
      png_destroy_read_struct(&png_, nullptr, nullptr);
      throw std::bad_alloc();
    }
  }
  PngReader(const PngReader&) = delete;
  PngReader& operator=(const PngReader&) = delete;
  ~PngReader() { png_destroy_read_struct(&png_, &info_, nullptr); }

  Image read() {
    guard([this] { read_header(); });
    Image image;
    image.size = {png_get_image_height(png_, info_), png_get_image_width(png_, info_)};
    check_image_size(image.size, file_);
    // DEFLATE makes at most 1032 bytes of one: a file of fewer would only cost memory
    if (image.size.height * png_get_rowbytes(png_, info_) / 1032 > bytes_) throw Error(file_ + " is cut short");
    const bool palette = png_get_color_type(png_, info_) == PNG_COLOR_TYPE_PALETTE;
    guard([this] { choose_samples(); });
    image.channels = png_get_channels(png_, info_);
    const std::size_t row = image.size.width * image.channels;
    if (png_get_rowbytes(png_, info_) != row) throw Error(file_ + " has pixels of an unknown kind");
    image.pixels.resize(image.size.height * row);
    guard([this, &image, row] {
      for (int pass = 0; pass < passes_; ++pass) {
        for (std::size_t y = 0; y < image.size.height; ++y) png_read_row(png_, image.pixels.data() + y * row, nullptr);
      }
      png_read_end(png_, info_);
    });
    return apply_orientation(palette ? look_up(image) : std::move(image), orientation());
  }

 private:
  // libpng leaves by longjmp: a step must hold nothing that has a destructor.
  template <typename Step>
  void guard(const Step& step) {
    if (setjmp(png_jmpbuf(png_))) {
      throw Error(file_ + (source_.cut_short ? std::string(" is cut short") : std::string(" is damaged: ") + source_.message));
    }
    step();
  }

  void read_header() {
    png_set_read_fn(png_, &source_, read_source);
    png_set_crc_action(png_, PNG_CRC_ERROR_QUIT, PNG_CRC_ERROR_QUIT);
    png_set_benign_errors(png_, 0);                                    // damaged pixels are an error, no warning
    png_set_user_limits(png_, PNG_UINT_31_MAX, PNG_UINT_31_MAX);       // check_image_size names the size
    png_set_keep_unknown_chunks(png_, PNG_HANDLE_CHUNK_NEVER, nullptr, -1);  // colour profiles and the like: Pillow ignores them
    png_set_keep_unknown_chunks(png_, PNG_HANDLE_CHUNK_NEVER, reinterpret_cast<png_const_bytep>("tRNS"), 1);
    png_set_keep_unknown_chunks(png_, PNG_HANDLE_CHUNK_ALWAYS, reinterpret_cast<png_const_bytep>("eXIf"), 1);
    png_set_keep_unknown_chunks(png_, PNG_HANDLE_CHUNK_AS_DEFAULT, reinterpret_cast<png_const_bytep>("tEXt\0zTXt\0iTXt"), 3);
    png_read_info(png_, info_);
  }

  // 8 bits a sample, without transparency; indices into a palette stay indices.
  void choose_samples() {
    png_set_strip_16(png_);  // the high eight bits
    png_set_strip_alpha(png_);
    png_set_packing(png_);
    if (png_get_color_type(png_, info_) == PNG_COLOR_TYPE_GRAY) png_set_expand_gray_1_2_4_to_8(png_);
    passes_ = png_set_interlace_handling(png_);
    png_read_update_info(png_, info_);
  }

  // A libpng built without its own check lets an index beyond the palette pass.
  Image look_up(const Image& indices) {
    png_colorp palette = nullptr;
    int colours = 0;
    png_get_PLTE(png_, info_, &palette, &colours);
    Image image{indices.size, 3, Bytes(3 * indices.pixels.size())};
    std::uint8_t* to = image.pixels.data();
    for (const std::uint8_t index : indices.pixels) {
      if (index >= colours) throw Error(file_ + " is damaged: a colour that its palette lacks");
      *to++ = palette[index].red, *to++ = palette[index].green, *to++ = palette[index].blue;
    }
    return image;
  }

  unsigned orientation() {
    png_unknown_chunkp chunks = nullptr;
    const int count = png_get_unknown_chunks(png_, info_, &chunks);
    png_textp texts = nullptr;
    int text_count = 0;
    png_get_text(png_, info_, &texts, &text_count);
    Bytes exif;
    std::string xmp;
    for (int i = 0; i < text_count; ++i) {
      const std::string keyword = texts[i].key, text(texts[i].text, texts[i].text_length + texts[i].itxt_length);
      if (keyword == "XML:com.adobe.xmp") xmp = text;
      if (keyword == "Raw profile type exif") exif = read_hexadecimal(text);
    }
    for (int i = 0; i < count; ++i) {
      if (std::memcmp(chunks[i].name, "eXIf", 4) == 0) exif.assign(chunks[i].data, chunks[i].data + chunks[i].size);
    }
    return read_orientation(exif, xmp, file_);
  }

  // ImageMagick's way: after three lines of header, two digits a byte.
  Bytes read_hexadecimal(const std::string& text) const {
    std::size_t at = 0;
    for (int line = 0; line < 3 && at < text.size(); ++line) at = std::min(text.find('\n', at), text.size() - 1) + 1;
    Bytes bytes;
    std::string digits;
    for (; at < text.size(); ++at) {
      if (std::isspace(static_cast<unsigned char>(text[at])) && digits.empty()) continue;
      if (!std::isxdigit(static_cast<unsigned char>(text[at]))) throw Error(file_ + " has EXIF as text that cannot be read");
      digits += text[at];
      if (digits.size() == 2) bytes.push_back(static_cast<std::uint8_t>(std::stoul(digits, nullptr, 16))), digits.clear();
    }
    if (!digits.empty()) throw Error(file_ + " has EXIF as text that cannot be read");
    return bytes;
  }

  const std::string& file_;
  const std::size_t bytes_;
  Source source_;
  png_structp png_;
  png_infop info_;
  int passes_ = 1;
};

}  // namespace

Image decode_png(const Bytes& bytes, const std::string& file) { return PngReader(bytes, file).read(); }

}  // namespace edge
